"""Import this before anything that imports pyarrow: a service does without pandas.

pyarrow imports pandas with the first array that it makes, if it is installed (river wants it): a quarter of a second of every start, and
40 MB of every process, for nothing.
"""

import sys
from importlib.abc import MetaPathFinder


class _WithoutPandas(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("a service does without pandas (runtime/lean.py)", name=name)


sys.meta_path.insert(0, _WithoutPandas())
