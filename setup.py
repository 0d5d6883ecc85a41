"""What pyproject.toml cannot say: a wheel also holds the files of a project, which `maskdit init` writes. They exist once, here."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "src"))
from maskdit.config.project import PACKAGED, parts  # noqa: E402


class BuildPy(build_py):
    """The package and, but in an editable installation, the files of a project."""

    def run(self) -> None:
        """Build both."""
        super().run()
        for name in () if self.editable_mode else parts(ROOT):
            target = Path(self.build_lib, "maskdit", PACKAGED, name)
            self.mkpath(str(target.parent))
            self.copy_file(str(ROOT / name), str(target))


setup(cmdclass={"build_py": BuildPy})
