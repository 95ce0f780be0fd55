#!/usr/bin/env python3
"""Real English text for the demo, from Debian packages: JSONL for training and for measuring.

Three packages of plain text, 1.9 MB to download with `apt-get download`, which needs no root:
  jargon-text           The Jargon File 4.4.7: essays, a lexicon, stories.  Public domain.
  developers-reference  Debian Developer's Reference.                      GPL-2 or later.
  debian-faq            The Debian GNU/Linux FAQ.                          Free licence of its own.
A chapter, or a letter of the lexicon, is one document (most have 2K to 30K tokens); every eighth
document is held out, none is in both parts.

usage: launch/demo_text.py OUT_FOLDER
  writes OUT_FOLDER/train.jsonl and heldout.jsonl, and the same documents again by kind, as
  recipes/smollm2_135m.yaml reads them: books.jsonl (the first package), textbooks.jsonl (the other
  two), heldout_books.jsonl, heldout_textbooks.jsonl
"""
import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BOOKS = [  # package, file inside, pattern of a heading at which a document starts
    ("jargon-text", "usr/share/doc/jargon-text/jargon.txt.gz",
     r"^(?:Chapter \d+\.|Appendix [A-Z]\.|Glossary|Bibliography|  [A-Z]$)"),
    ("developers-reference", "usr/share/developers-reference/developers-reference.txt.gz",
     r"^\d+\. .*\n\*{8}"),
    ("debian-faq", "usr/share/doc/debian/FAQ/debian-faq.en.txt.gz", r"^Chapter \d+\."),
]
DROPPED = ("Glossary", "Chapter 3. Revision History")  # an index of words; a list of dates
HELD_OUT_EVERY = 8
MIN_CHARS = 1500


def fetch(package, inside):
    """The text of one file of a package, without installing it."""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(["apt-get", "download", "-q", package], cwd=folder,
                                capture_output=True, text=True)
        found = list(Path(folder).glob("*.deb"))
        if result.returncode or not found:
            reason = (result.stderr.strip().splitlines() or ["no file came"])[-1]
            raise RuntimeError(f"apt-get download {package}: {reason} (after `apt-get update`?)")
        subprocess.run(["dpkg-deb", "-x", found[0], folder], check=True)
        text = gzip.decompress((Path(folder) / inside).read_bytes()).decode("utf-8")
        return text.replace("\u00a0", " ")


def is_prose(lines):
    """Lines of one paragraph that was wrapped by hand: full, and aligned from the second on."""
    indents = {len(line) - len(line.lstrip()) for line in lines[1:]}
    return len(indents) == 1 and min(map(len, lines[:-1])) > 45 and "  " not in lines[0].strip()


def unwrap(text):
    """Paragraphs on one line each; code, tables and lists keep their lines."""
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.rstrip() for line in block.split("\n") if line.strip()]
        if not lines or set("".join(lines)) <= set(" =*-~_─═"):
            continue
        lines = [line for line in lines if not set(line) <= set("*=-~")]  # underlined headings
        if len(lines) > 1 and is_prose(lines):
            joined = " ".join(line.strip() for line in lines)
            blocks.append(re.sub(r"(?<=\w)- (?=\w)", "-", joined))
        else:
            margin = min(len(line) - len(line.lstrip()) for line in lines)
            blocks.append("\n".join(line[margin:] for line in lines))
    return "\n\n".join(blocks)


def documents(package, inside, heading):
    text = fetch(package, inside)
    starts = [match.start() for match in re.finditer(heading, text, re.MULTILINE)]
    if len(starts) < 5:
        raise RuntimeError(f"{package}: expected chapters in {inside}, found {len(starts)}")
    for start, end in zip(starts, starts[1:] + [len(text)]):
        section = text[start:end]
        if section.startswith(DROPPED):
            continue
        if package == "jargon-text":
            section = re.sub(r"\{([^{}\n]+(?:\n[^{}\n]+)?)\}", r"\1", section)  # cross-references
        section = unwrap(section)
        if len(section) >= MIN_CHARS:
            yield {"text": section, "source": package, "title": section.split("\n")[0][:80]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    try:
        records = [record for book in BOOKS for record in documents(*book)]
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"demo_text: {error}", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    held_out = records[HELD_OUT_EVERY // 2::HELD_OUT_EVERY]
    train = [record for record in records if record not in held_out]
    def of_kind(part, is_book):
        return [r for r in part if (r["source"] == BOOKS[0][0]) == is_book]

    for name, part in (("train", train), ("heldout", held_out),
                       ("books", of_kind(train, True)), ("textbooks", of_kind(train, False)),
                       ("heldout_books", of_kind(held_out, True)),
                       ("heldout_textbooks", of_kind(held_out, False))):
        temporary = folder / f"{name}.jsonl.tmp"
        temporary.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in part),
                             encoding="utf-8")
        os.replace(temporary, folder / f"{name}.jsonl")
        print(f"{folder / name}.jsonl: {len(part)} documents, "
              f"{sum(len(r['text']) for r in part):,} characters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
