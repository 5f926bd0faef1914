"""Commands in this process, and what must come of them."""

from sae_unlearn.cli.main import main


def fit_arguments(folder, output, *more, sides=("forget.txt", "retain.json")):
    named = ["--model", folder / "model", "--sae", folder / "sae"]
    texts = ["--forget", folder / sides[0], "--retain", folder / sides[1]] if sides else []
    rest = [
        "--output",
        output,
        "--ratio-percentile",
        "95",
        "--clamp-scale",
        "4",
        "--store-probe",
        "--no-progress",
        *more,
    ]
    return [str(x) for x in ["fit", *named, *texts, *rest]]


def fails(capsys, arguments, *said):
    """The command ends with code 2 and one line on stderr that holds all of `said`."""
    capsys.readouterr()
    try:
        code = main([str(x) for x in arguments])
    except SystemExit as exit_:  # argparse
        code = exit_.code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("sae-unlearn")]
    assert code == 2
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    for part in said:
        assert part in lines[0]
