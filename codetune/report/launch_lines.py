"""The command lines that start the work of a project, alone or by a launcher. Starts nothing."""

from __future__ import annotations

from codetune.project.sections import Project


def launch_lines(project: Project, processes: int) -> dict[str, str]:
    """What is started -> the command line, for `processes` on each of the project's machines."""
    nodes = project.launch.nodes
    lines = {"everything": "codetune run"} if nodes == 1 else {}
    torchrun = f"torchrun --nproc-per-node {processes}"
    if nodes > 1:
        torchrun += f" --nnodes {nodes} --rdzv-backend c10d --rdzv-endpoint FIRST_HOST:29500"
        lines["train, on each machine"] = "MASTER_ADDR=FIRST_HOST NODE_RANK=0 codetune train"
        lines["train, by torchrun on each machine"] = f"{torchrun} -m codetune train"
    else:
        lines["train, by torchrun"] = f"{torchrun} -m codetune train"
        others = "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint FIRST_HOST:29500"
        lines["train, on each of two machines"] = f"{others} --nproc-per-node {processes} -m codetune train"
    machines = max(nodes, 2)
    lines["train, by srun"] = (
        f"srun --nodes {machines} --ntasks-per-node 1 --gpus-per-node {processes} codetune train"
        + ("" if nodes > 1 else f" --set launch.nodes={machines}")
    )
    lines["upload of the trained model"] = "codetune train --push OWNER/NAME"
    lines["score, in a job array"] = f"codetune score --shard $SLURM_ARRAY_TASK_ID/{project.slurm.shards}"
    lines["everything, by Slurm"] = "codetune slurm --submit"
    return lines
