# `make demo` and `make test` need Python 3.11 or newer, make and a package index; nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: photo demo test test-slow bench format clean

# The portrait that comes with matplotlib (public domain): runs/photo/grace_hopper_preview.png and the rest.
photo: .venv/ready
	$(BIN)/python -m facedepth_jax.predict --out=runs/photo \
		$$($(BIN)/python -c "import matplotlib; print(matplotlib.get_data_path())")/sample_data/grace_hopper.jpg

demo: .venv/ready
	$(BIN)/python -m facedepth_jax.main --config=configs/synthetic.py --workdir=runs/demo

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Exhaustive sweeps, long fuzzing, more processes and more kills: what `make test` has no time for.
test-slow: .venv/ready
	FACEDEPTH_FUZZ_EXAMPLES=1000 $(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or fuzz"

# On a CPU, Linux only; each prints its tables. With `.venv/bin/pip install -e '.[bench]'` against PyTorch too. The one
# for a GPU is benchmarks/gpu.py.
bench: .venv/ready
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/train_step.py --method=relief
	taskset -c 0 $(BIN)/python benchmarks/costs.py
	taskset -c 0 $(BIN)/python benchmarks/costs.py --method=relief
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/evaluate.py
	$(BIN)/python benchmarks/growth.py
	taskset -c 0 $(BIN)/python benchmarks/render.py
	taskset -c 0 $(BIN)/python benchmarks/synthetic.py
	rm -rf runs/bench
	$(BIN)/python tools/raw_trees.py --dataset=biwi --out=runs/bench/biwi --frames=4 --repeat=28
	$(BIN)/python tools/raw_trees.py --dataset=pandora --out=runs/bench/pandora --frames=1 --repeat=24
	$(BIN)/python benchmarks/prepare.py --biwi=runs/bench/biwi --pandora=runs/bench/pandora

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Made anew when the pinned versions change; `ready` is written last, so a set-up that broke off starts again. Python
# compiles what is imported, once; --no-compile leaves the rest.
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11: give another one with make PYTHON=python3.12"; exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .pytest_cache
