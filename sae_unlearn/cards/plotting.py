"""What all pictures share: matplotlib, loaded where something is drawn, and colours."""

from typing import Any

from sae_unlearn.install import install_command


NO_MATPLOTLIB = f"matplotlib draws the picture and is not installed; run: {install_command('eval')}"

# Okabe and Ito's: told apart with every common kind of colour blindness, and of unlike lightness
VERMILLION, BLUE = "#D55E00", "#0072B2"


def new_canvas(width: float, height: float, dpi: int = 150) -> Any:
    """An empty `matplotlib.figure.Figure` of so many inches, with no window and none of pyplot's global state.

    Raises:
        ImportError: matplotlib is not installed; names the extra.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(NO_MATPLOTLIB) from error
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
