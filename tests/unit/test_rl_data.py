"""Problems to train on: ledger, and the three sets from small parquet files of their own schema."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dreamr.errors import ConfigError
from dreamr.tasks.ledger import make_problem
from rl.config import DataSettings, load_sapo_config
from rl.data import load_data
from rl.trainer import order

SMOKE = Path(__file__).parents[2] / "configs" / "smoke-sapo.yaml"


def png(color: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder: Path, rows: list[dict[str, Any]], name: str = "train-00000-of-00001.parquet") -> str:
    pq.write_table(pa.Table.from_pylist(rows), folder / name)
    return str(folder)


def color_of(image: bytes) -> Any:
    return Image.open(io.BytesIO(image)).getpixel((0, 0))


def test_ledger_problems_come_with_their_answer_and_their_number_of_steps() -> None:
    data = load_data(DataSettings(seed=3), "eval", 5)
    problem = make_problem("validation", 3, 4)
    assert len(data) == 5
    assert data[4] == data[4]
    assert data[4].prompt == problem.prompt
    assert data[4].needed_steps == len(problem.operations) + 1
    assert data[4].is_correct(f"...</think>Answer: {problem.answer}")
    assert not data[4].is_correct("...")
    assert data[4].is_parsed("...</think>Answer: 1000")
    assert not data[4].is_parsed("...")


def test_geometry3k(tmp_path: Path) -> None:
    rows = [
        {"images": [png("red"), png("blue")], "problem": "<image><image>Find x.", "answer": "3 \\sqrt { 2 }"},
        {"images": [png("red")], "problem": "<image>Find y.", "answer": "3.5"},
    ]
    data = load_data(DataSettings(name="geometry3k", source=write(tmp_path, rows)), "train", 0)
    assert len(data) == 2
    assert data[0].prompt.question == "Find x."
    assert [color_of(image) for image in data[0].prompt.images] == [(255, 0, 0), (0, 0, 255)]
    assert data[1].is_correct("so </think>\\boxed{7/2}")
    assert data[1].needed_steps is None


def test_scienceqa_with_and_without_an_image(tmp_path: Path) -> None:
    row = {"question": "Which?", "choices": ["this", "that"], "answer": 1, "hint": "Look."}
    data = load_data(
        DataSettings(
            name="scienceqa", source=write(tmp_path, [row | {"image": png("red")}, row | {"image": None, "hint": ""}])
        ),
        "train",
        0,
    )
    assert data[0].prompt.question == "Look.\nWhich?\n(A) this\n(B) that\nAnswer with the letter of one option."
    assert len(data[0].prompt.images) == 1
    assert data[1].prompt.question.startswith("Which?")
    assert data[1].prompt.images == ()
    assert data[1].is_correct("\\boxed{B}")
    assert not data[1].is_correct("\\boxed{A or B}")


def test_ocr_vqa_has_a_problem_per_question(tmp_path: Path) -> None:
    rows = [
        {"image": png("red"), "questions": ["Who?", "What?"], "answers": ["Ann Lee", "A Book"]},
        {"image": png("blue"), "questions": ["Where?"], "answers": ["Here"]},
    ]
    data = load_data(DataSettings(name="ocr_vqa", source=write(tmp_path, rows)), "train", 0)
    assert [data[index].answer for index in range(len(data))] == ["Ann Lee", "A Book", "Here"]
    assert data[2].prompt.question.startswith("Where?")
    assert color_of(data[2].prompt.images[0]) == (0, 0, 255)
    assert data[0].is_correct("\\boxed{ann  lee.}")


def test_each_epoch_of_a_set_has_an_order_of_its_own_that_its_seed_decides() -> None:
    def ordered(seed: int, steps: int, name: str = "scienceqa") -> list[int]:
        config = load_sapo_config(SMOKE)  # 4 problems per step
        learner = config.learner.model_copy(update={"steps": steps})
        data = DataSettings.model_validate({"name": name, "seed": seed})
        return order(config.model_copy(update={"data": data, "learner": learner}), 11)

    first = ordered(1, 6)
    assert len(first) == 6 * 4
    epochs = [first[start : start + 8] for start in (0, 8, 16)]  # two batches; what fills no third is left out
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert first == ordered(1, 9)[: 6 * 4], "a longer run begins like a shorter one"
    assert first != ordered(2, 6)
    assert ordered(1, 2, "ledger") == list(range(8))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            DataSettings(train_split="trian"),
            "data: the ledger task has no split 'trian'; choose train, validation, test.",
        ),
        (DataSettings(name="scienceqa", source="./nowhere"), "'./nowhere': there is no such file or folder;"),
        (
            DataSettings(name="scienceqa", source="good"),
            "scienceqa needs the column 'question'; it has image, problem.",
        ),
        (DataSettings(name="scienceqa", source="good", train_split="dev"), "no parquet file begins with 'dev'"),
        (DataSettings(name="ocr_vqa", source="bad/train.parquet"), "cannot be read"),
    ],
)
def test_data_that_cannot_be_used_is_refused_in_one_sentence(
    settings: DataSettings, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("good", "bad"):
        Path(name).mkdir()
    write(Path("good"), [{"image": png("red"), "problem": "?"}])
    Path("bad/train.parquet").write_text("no parquet")
    with pytest.raises(ConfigError) as refused:
        load_data(settings, "train", 1)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
