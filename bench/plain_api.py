"""The least that the API's framework can do for one row: what `bench/reads.py` compares with.

`python -m bench.plain_api PORT JOB_ID`, under the API's own settings: one indexed SELECT by the same library
and the same pool, in a thread as every route that asks Postgres; the body is fixed, nobody is identified.
"""

import sys

import uvicorn
from fastapi import FastAPI, Response
from sqlalchemy import bindparam, select

from dmsae.service.database import Database
from dmsae.service.jobs import view_job
from dmsae.service.settings import load_settings
from dmsae.service.tables import Job


def main(port: int, job_id: str) -> None:
    """Serve until killed."""
    from api.schemas import JobOut

    database = Database(load_settings().database_url.get_secret_value(), wake_up=str)
    body = database.run(lambda session: JobOut.of(view_job(session, job_id)).model_dump_json())
    query = select(Job.version).where(Job.id == bindparam("job_id"))
    app = FastAPI()

    @app.get("/healthz")
    async def read_health() -> Response:
        return Response(status_code=204)

    @app.get("/jobs/{job_id}")
    def read_job(job_id: str) -> Response:
        with database.session_scope() as session:
            session.scalars(query, {"job_id": job_id}).one()
        return Response(body, media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False, server_header=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
