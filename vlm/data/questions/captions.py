"""Pictures to be described, with several references each. Opens no picture.

Read are COCO's captions_*.json (pictures in val2014/ and so on beside it), Karpathy's dataset_*.json, prepared datasets and what else retrieval reads.
"""

from pathlib import Path

from vlm.data.questions.base import Question, QuestionSet, QuestionSpec, Source, refuse_unnamed_split
from vlm.errors import DataFormatError


def open_captions(source: Source) -> QuestionSet:
    """Pictures with their captions as references.

    Raises:
        VLMError: See `vlm.data.benchmarks.captioned.open_captioned`.
    """
    from vlm.data.benchmarks.captioned import open_captioned  # loads torch

    path = Path(source.data)
    own = path.is_file() and path.suffix == ".json" and path.name.startswith("captions_")
    if own:
        return _coco(path, source)
    refuse_unnamed_split(source)
    data = open_captioned(source.data, data_root=source.data_root, split=source.split, image_root=source.images)
    references: list[list[str]] = [[] for _ in data.pictures]
    for owner, caption in zip(data.owners.tolist(), data.captions, strict=True):
        references[owner].append(caption)
    questions = []
    for picture, own_references in zip(data.pictures, references, strict=True):
        if not isinstance(picture.source, Path):
            raise DataFormatError(f"The picture {picture.id!r} lies inside a file of many; captions are measured on picture files.")
        questions.append(Question(id=picture.id, text="", images=(picture.source,), answers=tuple(own_references)))
    return QuestionSet(data.name, questions)


def _coco(path: Path, source: Source) -> QuestionSet:
    """COCO's own file, with the pictures of its split in a folder of the split's name."""
    from vlm.data.formats.coco import read_coco_captions
    from vlm.data.sample import Sample, refuse_faulty

    split = path.stem.removeprefix("captions_")
    folder = source.picture_folder(path, [split, f"../{split}", "images"])
    files: dict[str, Path] = {}
    references: dict[str, list[str]] = {}
    for sample in refuse_faulty(read_coco_captions(path)):
        assert isinstance(sample, Sample)
        number = sample.extra["image_id"]
        files[number] = folder / sample.images[0]
        references.setdefault(number, []).append(sample.messages[-1].text)
    return QuestionSet(path.stem, [Question(id=number, text="", images=(file,), answers=tuple(references[number])) for number, file in files.items()])


SPECS = {
    "captions": QuestionSpec(
        open=open_captions,
        prompt="Provide a one-sentence caption for the provided image.",  # LLaVA's, of many spellings of it
        measure="captions",
        max_new_tokens=64,
        description="Captions: CIDEr, BLEU-4 and ROUGE-L on COCO's files, Karpathy's split, or your own.",
    )
}
