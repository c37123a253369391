"""Stop a run in the middle, go on from its checkpoint, and compare with an undisturbed one."""

from paceline.run import RunConfig, prepare, resume
from paceline.store import RunFolder


def assert_resumes(tmp_path, task, **changes):
    """Assert that a run that was stopped after round 2 ends with the bits of one that was not."""
    values = {"task": "blobs", "clients": 6, "cohort": 5, "rounds": 4, "vectorize": "off", **changes}
    config = RunConfig.build(values)
    whole = prepare(config, task=task).go()
    folder = RunFolder.create(tmp_path, "stopped")
    folder.write_config(config.model_dump(exclude_none=True))

    def stop(record, total):
        if record["round"] == 2:
            raise KeyboardInterrupt

    try:
        prepare(config, task=task, folder=folder, observer=stop).go()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the run was not stopped")
    again = resume(folder.path, task=task)
    assert again.model_sha256 == whole.model_sha256
    kept = [[{k: v for k, v in r.items() if k != "wall_seconds"} for r in s.history] for s in (again, whole)]
    assert kept[0] == kept[1]
