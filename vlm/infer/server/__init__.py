"""An HTTP server for one trained model, with OpenAI's chat completions and a page to chat in."""
