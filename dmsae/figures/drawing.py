"""Which figure belongs to which data? Importing this loads matplotlib: do it when one is wanted."""

from typing import Literal

from matplotlib.figure import Figure

from dmsae.figures import compare, curves, density, flow, origins
from dmsae.figures.canvas import render
from dmsae.figures.comparison import CompareData
from dmsae.figures.data import CurvesData, DensityData, FlowData, OriginsData, Theme
from dmsae.figures.tables import FigureData
from dmsae.figures.themes import Look


def draw(data: FigureData, form: Literal["svg", "png"], theme: Theme = "light") -> bytes:
    """Draw a figure: the same bytes for the same data."""

    def paint(figure: Figure, look: Look) -> None:
        match data:
            case OriginsData():
                origins.paint_origins(figure, look, data)
            case FlowData():
                flow.paint_flow(figure, look, data)
            case CurvesData():
                curves.paint_curves(figure, look, data)
            case DensityData():
                density.paint_density(figure, look, data)
            case CompareData():
                compare.paint_compare(figure, look, data)

    return render(paint, size=_size_of(data), form=form, theme=theme)


def _size_of(data: FigureData) -> tuple[float, float]:
    match data:
        case OriginsData():
            return origins.size_of(data)
        case FlowData():
            return flow.size_of(data)
        case CurvesData():
            return curves.size_of(data)
        case DensityData():
            return density.size_of(data)
        case CompareData():
            return compare.size_of(data)
