"""launch/: the main line that each file starts, what becomes of it, and what is asked of the places it runs in.

Slurm, gcloud and sudo are stand-ins on PATH that write down what they were asked; main is a stand-in where its exit
code is what matters, and its own flags where its line is.
"""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

from facedepth_jax import main
from facedepth_jax.errors import NoPairs

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
CONFIG = "configs/synthetic.py:cgan"


def environment(tmp_path, **variables):
    """PATH begins with tmp_path/bin; nothing of the tester's own."""
    return {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path), "CONFIG": CONFIG} | variables


def stand_in(tmp_path, name, text):
    """A program in tmp_path/bin that appends its arguments as JSON to tmp_path/NAME.log and goes on with `text`."""
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    log = f"print(json.dumps(sys.argv[1:]), file=open({str(tmp_path / name)!r} + '.log', 'a'))"
    path.write_text(f"#!{sys.executable}\nimport json, os, pathlib, sys, time\n{log}\n{text}\n")
    path.chmod(0o755)
    return path


def asked(tmp_path, name):
    log = tmp_path / f"{name}.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def run(command, env, **kwargs):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, cwd=ROOT, env=env, timeout=60, **pipes, **kwargs)


FINISH = (
    "d = pathlib.Path(sys.argv[4].split('=')[1]); (d / 'new').write_text('{}'); (d / 'new').replace(d / 'results.json')"
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(path):
    assert path.stat().st_mode & 0o111
    assert run(["bash", "-n", path], os.environ).returncode == 0


def main_lines(tmp_path, hosts):
    """Place -> the command line of main that it comes to, as words; of several hosts that of the second."""
    dry = environment(tmp_path, DRY_RUN="1", PYTHON="python")
    lines = {}
    several = hosts > 1
    alone = run(["launch/run.sh", "--config.data.dir=a b"], dry | {"WORKDIR": "runs/x"}).stdout
    lines["run.sh"] = shlex.split(alone), ("runs/x", 3000.0, "a b", None)

    stand_in(tmp_path, "srun", "at = sys.argv.index('bash'); os.execvp('bash', sys.argv[at:])")
    stand_in(tmp_path, "scontrol", "print('n3\\nn4')")
    slurm = dry | {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "1", "LAMBDAS": "1.0 20.0"}
    slurm |= {"SLURM_JOB_NUM_NODES": str(hosts), "SLURM_JOB_NODELIST": "n[3-4]", "SLURM_PROCID": "1"}
    slurm |= {"SLURM_NTASKS": str(hosts), "WORKDIR": "runs/y"}
    array = run(["bash", "launch/slurm.sh", "--config.data.dir=a b"], slurm).stdout
    process = "1/2@n3:20007" if several else None
    lines["slurm.sh"] = shlex.split(array), ("runs/y/lam_20.0", 20.0, "a b", process)

    for kind in ("tpu", "gpu"):
        (jobset,) = jobsets(tmp_path, kind, "--config.data.dir=it's", HOSTS=str(hosts))
        container = pod(jobset)["containers"][0]
        env = {entry["name"]: entry["value"] for entry in container["env"]}
        words = [word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in container["args"]]
        inside = run([*container["command"], *words], dry | env).stdout
        process = {"tpu": "auto", "gpu": "1/2@facedepth-train-0-0.facedepth:1234"}[kind] if several else None
        lines[f"gke.sh {kind}"] = shlex.split(inside), ("runs/facedepth", 3000.0, "it's", process)

    tpu = {"TPU": "z", "PROJECT": "p", "ZONE": "q"}
    tpu |= {"NFS": "1.2.3.4:/share", "ACCELERATOR": "v6e-16"} if several else {"DISK": "d"}
    printed = run(["launch/tpu_vm.sh", "--config.data.dir=a b"], dry | tpu).stdout
    (ssh,) = [shlex.split(line)[-1] for line in printed.splitlines() if " ssh " in line]
    on_host = shlex.split(ssh.removeprefix("--command=").rsplit("&&", 1)[1])
    at = on_host.index("launch/tpu_vm_host.sh")
    on_host[at] = "launch/run.sh"  # as tpu_vm_host.sh hands it on, see its own test
    told = shlex.split(run(on_host, dry).stdout)
    lines["tpu_vm.sh"] = told, ("runs/z", 3000.0, "a b", "auto" if several else None)

    sky = yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())
    given = {"RUN": "w", "ARGUMENTS": "--config.data.dir=a --config.loss.lam=5.0"}
    given |= {"SKYPILOT_NUM_NODES": str(hosts), "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    there = run(["bash", "-c", sky["run"]], dry | given).stdout
    process = "1/2@10.0.0.1:1234" if several else None
    lines["skypilot.yaml"] = shlex.split(there), ("/facedepth_runs/w", 5.0, "a", process)
    return lines


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a file
@pytest.mark.parametrize("hosts", [1, 2])
def test_every_place_comes_to_the_same_main_line_and_main_takes_it(tmp_path, monkeypatch, hosts):
    lines = main_lines(tmp_path, hosts)
    for name, (words, (workdir, *_)) in lines.items():
        python = ".venv/bin/python" if name == "skypilot.yaml" else "python"
        assert words[:5] == [python, "-m", "facedepth_jax.main", f"--config={CONFIG}", f"--workdir={workdir}"], name
    taken = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(main.runtime, "join", taken.append)
    monkeypatch.setattr(main.runtime, "keep_compiled", lambda: None)
    monkeypatch.setattr(main.os, "_exit", sys.exit)
    monkeypatch.setattr(main.train, "run", lambda *arguments: taken.append(arguments))
    for words, (workdir, lam, data_dir, process) in lines.values():
        main.main(words[3:])
        config, at, _ = taken.pop()
        assert (config.method, config.loss.lam, config.data.dir, str(at)) == ("cgan", lam, data_dir, workdir)
        assert (taken.pop() if taken else None) == process


# --- run.sh ----------------------------------------------------------------------------------------------------------


def start(tmp_path, text, **variables):
    """run.sh with a stand-in for Python."""
    python = stand_in(tmp_path, "python", text)
    (tmp_path / "run").mkdir(exist_ok=True)
    return run(
        ["launch/run.sh"],
        environment(tmp_path, PYTHON=str(python), WORKDIR=f"{tmp_path}/run", PAUSE_SEC="0", **variables),
    )


def test_finished_is_told_from_stopped(tmp_path):
    assert start(tmp_path, "").returncode == 75  # exit code 0 and no results
    assert start(tmp_path, FINISH).returncode == 0
    assert start(tmp_path, "").returncode == 75  # results of before: more steps were asked for, and stopped on the way
    assert start(tmp_path, FINISH).returncode == 0  # made again
    assert start(tmp_path, "sys.exit(1)").returncode == 1
    assert start(tmp_path, f"{FINISH}; sys.exit(1)").returncode == 1


def test_what_was_killed_starts_again_and_what_main_refuses_does_not(tmp_path):
    dies_twice = (
        "log = pathlib.Path(__file__ + '.runs'); n = len(log.read_text()) if log.exists() else 0\n"
        f"log.write_text('x' * (n + 1))\nif n < 2: os.kill(os.getpid(), 9)\n{FINISH}"
    )
    assert start(tmp_path, dies_twice).returncode == 0
    assert len(asked(tmp_path, "python")) == 3
    assert start(tmp_path, "os.kill(os.getpid(), 9)", RESTARTS="2").returncode == 137
    assert len(asked(tmp_path, "python")) == 3 + 3
    assert start(tmp_path, "sys.exit(1)").returncode == 1
    assert len(asked(tmp_path, "python")) == 3 + 3 + 1


STOPPABLE = f"""
sys.path.insert(0, {str(ROOT)!r})
from facedepth_jax.runtime import StopSignal
run = pathlib.Path(sys.argv[4].split('=')[1])
with StopSignal() as stop:
    (run / 'started').write_text(str(os.getpid()))
    for _ in range(300):
        if stop.seen: break
        time.sleep(0.1)
    else: sys.exit(1)
    time.sleep(0.5)  # a second signal of the same kind would end it here
    (run / 'saved').touch()
"""


@pytest.mark.parametrize(
    "to, number",
    [
        *((to, number) for to in ("wrapper", "group") for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)),
        ("both", signal.SIGTERM),
    ],
)
def test_a_signal_saves_whoever_gets_it(tmp_path, to, number):
    """To run.sh alone (Kubernetes), to its process group (a terminal), to every process (Slurm's steps, systemd)."""
    python = stand_in(tmp_path, "python", STOPPABLE)
    workdir = tmp_path / "run"
    workdir.mkdir()
    # What nohup or a background job tells its children to ignore, a shell cannot trap.
    process = subprocess.Popen(
        ["env", "--default-signal=TERM,INT,HUP", "launch/run.sh"],
        cwd=ROOT,
        env=environment(tmp_path, PYTHON=str(python), WORKDIR=str(workdir)),
        start_new_session=True,
    )
    child = wait_for(workdir / "started")
    if to == "both":
        os.kill(int(child), number)
    if to == "group":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    assert process.wait(30) == 75
    assert (workdir / "saved").exists()


def wait_for(path):
    for _ in range(600):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


@pytest.mark.parametrize("name", ["run.sh", "gke.sh", "tpu_vm.sh", "slurm.sh"])
def test_what_is_not_said_is_asked_for_in_a_sentence(tmp_path, name):
    env = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "1", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0"}
    done = run(["bash", f"launch/{name}"], env)
    assert done.returncode == 1 and ": set " in done.stdout.splitlines()[-1], done.stdout


# --- Slurm -----------------------------------------------------------------------------------------------------------


def slurm(tmp_path, main, state, **variables):
    python = stand_in(tmp_path, "python", main)
    stand_in(tmp_path, "srun", "at = sys.argv.index('bash'); os.execvp('bash', sys.argv[at:])")
    stand_in(tmp_path, "squeue", f"print({state!r})")
    stand_in(tmp_path, "scontrol", "")
    (tmp_path / "run").mkdir(exist_ok=True)
    env = environment(tmp_path, PYTHON=str(python), WORKDIR=f"{tmp_path}/run", SLURM_JOB_ID="41", **variables)
    return run(["bash", "launch/slurm.sh"], env).returncode


def test_slurm_queues_again_what_was_stopped_and_nothing_else(tmp_path):
    assert slurm(tmp_path, FINISH, "RUNNING") == 0
    assert slurm(tmp_path, "sys.exit(1)", "RUNNING") == 1
    assert slurm(tmp_path, "", "CANCELLED") == 75  # scancel
    assert asked(tmp_path, "scontrol") == []
    assert slurm(tmp_path, "", "RUNNING") == 75
    assert asked(tmp_path, "scontrol") == [["requeue", "41"]]
    # The bare id of an array's task may stand for the whole array.
    array = {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "0", "LAMBDAS": "1.0"}
    assert slurm(tmp_path, "", "RUNNING", **array) == 75
    assert asked(tmp_path, "scontrol")[1:] == [["requeue", "41_0"]]
    assert asked(tmp_path, "squeue")[-1][1] == "--jobs=41_0"


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def jobsets(tmp_path, *arguments, **variables):
    env = environment(tmp_path, IMAGE="image:1", CLAIM="claim", **variables)
    done = run(["launch/gke.sh", *arguments], env)
    assert done.returncode == 0, done.stdout
    return list(yaml.safe_load_all(done.stdout))


def pod(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("kind, chips", [("tpu", "google.com/tpu"), ("gpu", "nvidia.com/gpu")])
def test_a_jobset_of_one_pod_that_comes_back(tmp_path, kind, chips):
    (jobset,) = jobsets(tmp_path, kind)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (1, 1, 1)
    (container,) = pod(jobset)["containers"]
    exits = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert [rule["containerName"] for rule in exits] == [container["name"]] * 2
    assert container["resources"] == {"limits": {chips: "8"}}
    assert container["args"] == [] and (ROOT / container["command"][0]).exists()
    volumes = {volume["name"]: volume for volume in pod(jobset)["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["disk"]["persistentVolumeClaim"] == {"claimName": "claim"}
    workdir = {entry["name"]: entry["value"] for entry in container["env"]}["WORKDIR"]
    image_root = (ROOT / "launch/Dockerfile").read_text().split("\nWORKDIR ")[1].split("\n")[0]
    assert any(f"{image_root}/{workdir}".startswith(mount["mountPath"]) for mount in container["volumeMounts"])

    (spot,) = jobsets(tmp_path, kind, SPOT="1", NAME="b", CHIPS="4", ACCELERATOR="other")
    assert pod(spot)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert "other" in pod(spot)["nodeSelector"].values() and spot["metadata"]["name"] == "b"
    assert pod(spot)["containers"][0]["resources"] == {"limits": {chips: "4"}}

    (several,) = jobsets(tmp_path, kind, HOSTS="4")
    job = several["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (4, 4)


# --- Cloud TPU VM ----------------------------------------------------------------------------------------------------

GCLOUD = """
here = pathlib.Path(__file__).parent.parent
verb = sys.argv[4]
codes = here / 'codes'
if verb == 'list':
    states = (here / 'states').read_text().split(',')
    (here / 'states').write_text(','.join(states[1:] or states))
    if states[0] == 'ERROR': sys.exit(1)
    print(states[0], end='\\n' if states[0] else '')
elif verb == 'ssh':
    first, *rest = codes.read_text().split(',')
    codes.write_text(','.join(rest or [first]))
    sys.exit(int(first))
"""


@pytest.mark.parametrize(
    "states, codes, verbs, code",
    [
        # asked for, waited for, trained, deleted
        ([""] + ["WAITING_FOR_RESOURCES", "ACTIVE"], [0], "create scp ssh delete", 0),
        # preempted while it trains: the connection breaks, the request is deleted and made again
        (["ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE"], [255, 0], "scp ssh delete create scp ssh delete", 0),
        # stopped by a shutdown; gcloud's own error when the VM is gone
        (["ACTIVE", "SUSPENDED", "", "ACTIVE"], [75, 0], "scp ssh delete create scp ssh delete", 0),
        (["ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE"], [1, 0], "scp ssh delete create scp ssh delete", 0),
        # main's own error, and a request that cannot be met; the network away for a moment
        (["ERROR", "ACTIVE"], [1], "scp ssh", 1),
        (["FAILED"], [0], "", 1),
    ],
)
def test_a_tpu_vm_is_asked_for_again_until_the_run_has_finished(tmp_path, states, codes, verbs, code):
    stand_in(tmp_path, "gcloud", GCLOUD)
    stand_in(tmp_path, "git", "")
    (tmp_path / "states").write_text(",".join(states))
    (tmp_path / "codes").write_text(",".join(map(str, codes)))
    env = environment(tmp_path, TPU="t", PROJECT="p", ZONE="z", DISK="d", PAUSE_SEC="0", TMPDIR=str(tmp_path))
    done = run(["launch/tpu_vm.sh"], env)
    assert done.returncode == code, done.stdout
    calls = asked(tmp_path, "gcloud")
    assert [call[3] for call in calls if call[3] != "list"] == verbs.split()
    for call in calls:
        assert {"--project=p", "--zone=z"} <= set(call)
        assert (call[3] == "delete") == ("--force" in call and "--quiet" in call)
        if call[3] == "create":
            assert {"--spot", "--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e", "--node-id=t"} < set(
                call
            )
            assert "--data-disk=source=projects/p/zones/z/disks/d,mode=read-write" in call
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp.")]  # the archive of the code


def test_several_hosts_have_no_disk_but_a_share(tmp_path):
    env = environment(tmp_path, TPU="t", PROJECT="p", ZONE="z", DRY_RUN="1")
    done = run(["launch/tpu_vm.sh"], env | {"DISK": "d", "ACCELERATOR": "v5litepod-8"})
    assert "--runtime-version=v2-alpha-tpuv5-lite --data-disk=" in done.stdout and "NFS=" not in done.stdout
    done = run(["launch/tpu_vm.sh"], env | {"NFS": "1.2.3.4:/s", "ACCELERATOR": "v5litepod-16"})
    assert "--data-disk" not in done.stdout and "NFS=1.2.3.4:/s" in done.stdout.replace("\\", "")
    assert done.stdout.count("--worker=all") == 2
    for wrong, sentence in (
        ({"ACCELERATOR": "v6e-16", "DISK": "d"}, "set NFS to"),
        ({"ACCELERATOR": "v4-8"}, "v4-8: "),
    ):
        done = run(["launch/tpu_vm.sh"], env | wrong)
        assert done.returncode == 1 and sentence in done.stdout


def test_the_tpu_vm_mounts_its_disk_and_waits_for_a_run_that_is_there(tmp_path):
    """In a copy of launch/ with everything around it a stand-in."""
    (tmp_path / "launch").mkdir()
    for name in ("tpu_vm_host.sh", "run.sh"):
        (tmp_path / "launch" / name).write_bytes((ROOT / "launch" / name).read_bytes())
    for name in ("sudo", "mountpoint"):
        stand_in(tmp_path, name, "")
    stand_in(tmp_path, "python", FINISH)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(tmp_path / "bin")
    (tmp_path / ".venv" / "ready").touch()
    disk = tmp_path / "disk"
    (disk / "runs" / "t").mkdir(parents=True)
    env = environment(tmp_path, DISK_PATH=str(disk), WORKDIR="runs/t")
    command = ["bash", f"{tmp_path}/launch/tpu_vm_host.sh", "--config.loss.lam=1.0"]
    lock = tmp_path / ".venv" / "lock"
    with subprocess.Popen(["flock", lock, "sleep", "1"]):  # a run whose watcher has gone
        wait_until = time.monotonic() + 5
        while not lock.exists() and time.monotonic() < wait_until:
            time.sleep(0.02)
        time.sleep(0.1)
        started = time.monotonic()
        done = run(command, env)
        waited = time.monotonic() - started
    assert done.returncode == 0 and waited > 0.5, done.stdout
    assert asked(tmp_path, "python") == [
        ["-m", "facedepth_jax.main", f"--config={CONFIG}", "--workdir=runs/t", "--config.loss.lam=1.0"]
    ]
    assert (disk / "runs/t/results.json").exists() and (disk / "t.log").exists()


# --- SkyPilot, the image ---------------------------------------------------------------------------------------------


def test_the_exit_codes_of_run_sh_are_those_that_others_act_on(tmp_path):
    stopped, failed = start(tmp_path, "").returncode, start(tmp_path, "sys.exit(1)").returncode
    (jobset,) = jobsets(tmp_path, "gpu")
    rules = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    exits = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule}
    assert exits == {"Ignore": [stopped], "FailJob": [failed, 2, NoPairs.exit_code]}  # 2: argparse's
    sky = yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())
    assert sky["resources"]["job_recovery"]["recover_on_exit_codes"] == [stopped]


def test_skypilots_scripts_are_bash(tmp_path):
    task = yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())
    for script in (task["setup"], task["run"]):
        assert run(["bash", "-n", "-c", script], environment(tmp_path)).returncode == 0


def test_the_image_copies_what_is_there():
    for line in (ROOT / "launch/Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line
