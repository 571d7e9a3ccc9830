"""Archives of published data: downloaded, checked and extracted. Knows no dataset."""
