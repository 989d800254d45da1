"""What the client can ask to be drawn: figures of a job, and of how several compare."""

from collections.abc import Sequence
from typing import Literal

from dmsae.client.calls import Answer, Read, Request, Resource, S, Steps, call

Figure = Literal["origins", "flow", "curves", "density"]
Form = Literal["svg", "png", "csv"]
Theme = Literal["light", "dark"]
Over = Literal["k", "seed"]


class Figures(Resource[S]):
    """Figures, which the service draws; as `csv` the data behind them."""

    @call
    def of_job(
        self, job_id: str, figure: Figure, *, form: Form = "svg", theme: Theme = "light"
    ) -> Steps[bytes]:
        """Give a figure of one job.

        Raises:
            NotFound: there is no such job, or nothing to draw of it yet.
        """
        drawn: bytes = yield Read(f"/jobs/{job_id}/figures/{figure}.{form}", {"theme": theme})
        return drawn

    @call
    def compare(
        self, ids: Sequence[str], *, over: Over = "k", form: Form = "svg", theme: Theme = "light"
    ) -> Steps[bytes]:
        """Give how jobs, or the jobs of groups, compare: with width-matched controls that there are.

        Raises:
            NotFound: there is no such job or group, or none has succeeded.
        """
        query = {"jobs": ",".join(ids), "over": over, "theme": theme}
        drawn: bytes = yield Read(f"/figures/compare.{form}", query)
        return drawn

    @call
    def comparison(self, ids: Sequence[str], *, over: Over = "k") -> Steps[Answer]:
        """Give the same as values: each job's figures, their means, and the controls that are missing.

        Raises:
            NotFound: there is no such job or group, or none has succeeded.
        """
        answer: Answer = yield Request("GET", "/figures/compare", query={"jobs": ",".join(ids), "over": over})
        return answer
