"""Which cycles' files does a cycle start from, beside the core of the cycle before?"""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from dmsae.service.tables import Table


class CycleSource(Table):
    """A finished cycle whose SAE and core a training's or a match's cycle is made from."""

    __tablename__ = "cycle_sources"

    cycle_id: Mapped[str] = mapped_column(ForeignKey("cycles.id"), primary_key=True)
    source_cycle_id: Mapped[str] = mapped_column(ForeignKey("cycles.id"), primary_key=True, index=True)
