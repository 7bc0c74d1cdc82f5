"""Writes `tests/fixtures/parquet/`: small preference data as Parquet, as Hugging Face's `datasets` and pyarrow write it, and as JSON lines.

Made with Python 3.11, datasets 5.2.0, pyarrow 26.0.1:

    pip install datasets==5.2.0 pyarrow==26.0.1
    python parquet_files.py

The tests read the fixtures and never run Python.
"""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import Dataset

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "parquet"


def turn(role, content):
    return {"role": role, "content": content}


def texts():
    return [
        {"prompt": "How do I bake bread?", "chosen": "Start with good flour.", "rejected": "Buy a loaf."},
        {"prompt": "パンはどうやって焼きますか？", "chosen": "よい小麦粉から始めます。", "rejected": "パンを買いましょう。"},
        {"prompt": "Ninawezaje kuoka mkate?", "chosen": "Anza na unga mzuri.\n\nKisha maji.", "rejected": "Nunua mkate."},
    ]


def conversations():
    """Explicit prompts of several turns, with columns that mpo does not read."""
    rows = texts()
    system = turn("system", "Be brief.")
    return [
        {
            "id": f"row {index}",
            "prompt": ([system] if index == 1 else []) + [turn("user", row["prompt"])],
            "chosen": [turn("assistant", row["chosen"])],
            "rejected": [turn("assistant", row["rejected"])],
            "score_chosen": 7.5,
            "source": None,
        }
        for index, row in enumerate(rows)
    ]


def labels():
    rows = texts()
    wanted = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in rows]
    return [*wanted, {"prompt": rows[0]["prompt"], "completion": rows[0]["rejected"], "label": False}]


def parallel():
    english, japanese, swahili = texts()
    return [
        {"id": index, "dominant": {"lang": "en", **english}, "target": {"lang": lang, **row}}
        for index, (lang, row) in enumerate([("ja", japanese), ("sw", swahili)])
    ]


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for make in [texts, conversations, labels, parallel]:
        rows, name = make(), make.__name__
        # Two rows a group: a reader must go on from one to the next.
        Dataset.from_list(rows).to_parquet(FOLDER / f"{name}.parquet", batch_size=2)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (FOLDER / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    table = pyarrow.Table.from_pylist(texts())
    for compression in ["gzip", "zstd"]:
        pyarrow.parquet.write_table(table, FOLDER / f"texts-{compression}.parquet", compression=compression)
    spoilt = texts()
    spoilt[1]["chosen"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(spoilt), FOLDER / "spoilt.parquet")


if __name__ == "__main__":
    main()
