"""The commands in our documents."""

import re


def commands_of(text: str) -> list[str]:
    """Every command line of the bash blocks of a page, continued lines joined, without comments."""
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def words_of(command: str) -> list[str]:
    """Program and arguments, quotes removed, without variables set before."""
    words = [word.strip("\"'") for word in re.findall(r'"[^"]*"|\'[^\']*\'|\S+', command)]
    return words[next(index for index, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=\S+", word)) :]
