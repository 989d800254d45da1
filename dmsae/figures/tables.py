"""How do a figure's data become CSV? A header and a row for each value; null is empty."""

import csv
import io

from dmsae.figures.comparison import CompareData
from dmsae.figures.data import CurvesData, DensityData, FlowData, OriginsData

FigureData = OriginsData | FlowData | CurvesData | DensityData | CompareData


def as_csv(data: FigureData) -> bytes:
    """Write all rows."""
    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    writer.writerow(data.HEADER)
    writer.writerows(data.rows())
    return sink.getvalue().encode()
