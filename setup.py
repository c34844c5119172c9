"""What pyproject.toml cannot say of the wheel: the networks of exp/nets are installed inside the package."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SHIPPED = "dmcmc_core.shipped"  # a folder without modules, found by dmcmc_core/nets/shipped.py


class BuildPy(build_py):
    """Take only package data from exp/nets: the scripts there that measure the networks are no modules of ours."""

    def find_package_modules(self, package, package_dir):
        return [] if package == SHIPPED else super().find_package_modules(package, package_dir)


setup(
    packages=[*find_packages(include=["dmcmc_core*"]), SHIPPED],
    package_dir={SHIPPED: "exp/nets"},
    package_data={SHIPPED: ["*.safetensors"], "dmcmc_core": ["py.typed"]},
    cmdclass={"build_py": BuildPy},
)
