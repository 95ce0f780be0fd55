"""Folders as `datasets` of Hugging Face saves them (save_to_disk): Arrow files, and state.json that
names them in order. A folder with several splits has a folder for each and dataset_dict.json."""
import json

from . import UserError


def read_state(path):
    """The object in the file; {} if there is none."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected what `datasets` saves ({error})") from error
    return content if isinstance(content, dict) else {}


def check_one_split(folder):
    """Splits are kept apart for a reason: one call takes one of them."""
    splits = read_state(folder / "dataset_dict.json").get("splits")
    if isinstance(splits, list) and len(splits) > 1:
        raise UserError(f"{folder}: has the splits {', '.join(map(str, splits))}: name one of "
                        f"them, such as {folder / str(splits[0])}")


def listed_files(folder, state):
    for file in state["_data_files"]:
        name = file.get("filename") if isinstance(file, dict) else None
        if not isinstance(name, str) or not name.endswith(".arrow") or "/" in name:
            raise UserError(f"{folder / 'state.json'}: expected names of Arrow files in "
                            f"_data_files, found {file!r}")
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: no such file, though state.json names it; copy the "
                            "folder whole")
        yield name


def arrow_names(folder, names):
    """The Arrow files among the names that are the data set, in its order. (cache-*.arrow are what
    `datasets` keeps of earlier computations.)"""
    check_one_split(folder)
    state = read_state(folder / "state.json")
    if not isinstance(state.get("_data_files"), list):
        return [n for n in names if n.endswith(".arrow") and not n.startswith("cache-")]
    if state.get("_indices_data_files"):
        raise UserError(f"{folder}: was saved as a selection of rows by an old `datasets`; load "
                        "it and save it again (flatten_indices, save_to_disk)")
    return list(listed_files(folder, state))
