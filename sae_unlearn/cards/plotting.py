"""Canvas and colors of all pictures. Loads matplotlib only when something is drawn."""

from typing import Any

from sae_unlearn.install import install_command


NO_MATPLOTLIB = f"matplotlib draws the picture and is not installed; run: {install_command('eval')}"

# From the palette of Okabe and Ito: distinct in lightness and with all common kinds of color blindness
VERMILLION, BLUE = "#D55E00", "#0072B2"


def new_canvas(width: float, height: float, dpi: int = 150) -> Any:
    """Return an empty `matplotlib.figure.Figure`, without a window or pyplot's global state.

    Args:
        width, height (float): Size in inches.
        dpi (int, *optional*, defaults to 150): Dots per inch.

    Raises:
        ImportError: If matplotlib is not installed. The message names the extra.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(NO_MATPLOTLIB) from error
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
