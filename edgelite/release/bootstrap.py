# What runs first in edgelite.pyz: finds the agent's modules in the one packed piece beside this file.
import sys

if sys.version_info < (3, 9):
    sys.exit("edgelite: Python 3.9 or newer is needed; this one is %d.%d" % sys.version_info[:2])

import bz2
import importlib.util
import json
import os


class Archive:
    """Imports from {path: source}. `files` and `archive` are for who unpacks it."""

    def __init__(self, where, files):
        self.archive = self.where = where
        self.files = files

    def find_spec(self, name, path=None, target=None):
        base = name.replace(".", "/")
        for file in (base + "/__init__.py", base + ".py"):
            if file in self.files:
                origin = os.path.join(self.where, file)
                package = file.endswith("/__init__.py")
                spec = importlib.util.spec_from_loader(name, self, origin=origin, is_package=package)
                spec.has_location = True
                return spec
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        code = compile(self.get_source(module.__name__), module.__spec__.origin, "exec", dont_inherit=True)
        exec(code, module.__dict__)

    def get_source(self, name):
        return self.files[os.path.relpath(self.find_spec(name).origin, self.where).replace(os.sep, "/")]

    def get_data(self, path):
        return self.files[os.path.relpath(path, self.where).replace(os.sep, "/")].encode()


def main():
    where = os.path.dirname(os.path.abspath(__file__))
    packed = __loader__.get_data(os.path.join(where, "edgelite.json.bz2"))
    archive = Archive(where, json.loads(bz2.decompress(packed).decode()))
    sys.meta_path.insert(0, archive)
    from edgelite.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
