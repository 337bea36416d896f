# Two commands: `make lab` and `make test`. Both set everything up in .venv first, quickly if it is there already.
PYTHON ?= python3
PORT ?= 8888
LAB_ARGS ?=
VENV := .venv/bin
ROOT_USER := $(if $(filter 0,$(shell id -u)),--allow-root)
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg
NOTEBOOKS_RUN := OMP_NUM_THREADS=1 PYTHONPATH=tests/plugins $(VENV)/python -m pytest -q -n 2 --dist loadfile -p nbval_kernels $(NBVAL)

.PHONY: help setup lab test test-lib coverage test-notebooks test-with-data test-browser notebooks class figures references site badges lint clean

help:
	@echo "make lab         open the notebooks in JupyterLab (PORT=8888)"
	@echo "make test        lint, library tests, and every notebook with its outputs compared"
	@echo "make coverage    library tests, and the lines of the library that none of them ran"
	@echo "make test-browser  every notebook in JupyterLab in headless Chromium: all cells run, every slider moved"
	@echo "make notebooks   run all notebooks again, in place"
	@echo "make class       copies for a class: class/student without solutions, class/instructor with them"
	@echo "make site        the notebooks as static pages in site/, for reading without Python or a network"
	@echo "make badges REPOSITORY=owner/name   badges for Colab and Binder, once this is published there"
	@echo "make figures     draw the README's pictures again, from the shipped weights"
	@echo "make references  describe the pictures in data/ and the samples of runs/cats32 again, for the notebooks to compare with"
	@echo "make lint        ruff (notebooks included) and mypy"
	@echo "make clean       remove .venv and caches"

setup:
	@$(PYTHON) .ci/setup_env.py install

lab: setup
	@$(PYTHON) .ci/setup_env.py port $(PORT)
	@echo "opening JupyterLab on port $(PORT); stop it with Ctrl-C"
	@PYTHONPATH=.ci $(VENV)/python -m jupyterlab --ServerApp.root_dir=. \
		--ServerApp.kernel_websocket_connection_class=quick_socket.QuickConnection --LabApp.default_url=/lab/tree/notebooks/01_forward_noising.ipynb \
		--port=$(PORT) --ServerApp.port_retries=0 $(ROOT_USER) $(LAB_ARGS)

test: lint test-lib test-notebooks

lint: setup
	@$(VENV)/python -m ruff check .
	@$(VENV)/python -m mypy

test-lib: setup
	@$(VENV)/python -m pytest -q -n auto --dist loadfile tests

# the same, a fifth slower, and the lines of the library that no test ran
coverage: setup
	@$(VENV)/python -m pytest -q -n auto --dist loadfile --cov=diffusion_lib --cov-report=term-missing:skip-covered tests

# two at a time, a thread each: quicker than one after the other with two threads
test-notebooks: setup
	@$(NOTEBOOKS_RUN) notebooks

# what may look at data/: the tests of data and, as a proof, one notebook (a guard holds that no notebook's code names a folder of
# pictures; the tests of the command line name folders of their own)
test-with-data: setup
	@$(NOTEBOOKS_RUN) tests/data \
		notebooks/06_cats_32_to_128.ipynb

test-browser: setup
	@$(PYTHON) .ci/setup_env.py browser
	@OMP_NUM_THREADS=1 $(VENV)/python -m pytest -q -rs -n 2 tests/browser --with-browser

notebooks: setup
	@$(VENV)/python .ci/execute_notebooks.py

class: setup
	@$(VENV)/python .ci/make_class.py

site: setup
	@$(VENV)/python .ci/make_site.py

badges:
	@$(PYTHON) .ci/badges.py $(REPOSITORY)

figures: setup
	@$(VENV)/python -m diffusion_lib sample catfaces128 --n 32 --seed 0 \
		--columns 8 --grid figures/catfaces128_grid.webp
	@$(VENV)/python -m diffusion_lib sample catfaces128 --n 8 --seed 0 \
		--columns 4 --animation figures/catfaces128.webp
	@$(VENV)/python -m diffusion_lib sample toycats32 --n 64 --seed 0 --sampler ddim --steps 25 \
		--columns 16 --scale 2 --grid figures/toycats32_grid.webp
	@$(VENV)/python -m diffusion_lib sample cats32 --n 32 --seed 0 \
		--columns 8 --scale 2 --grid figures/cats32_grid.webp
	@$(VENV)/python -m diffusion_lib sample toysd64 --prompt "a white cat with stripes, green eyes and round ears on blue" \
		--guidance 3 --n 8 --seed 0 --columns 8 --grid figures/toysd64_grid.webp

references: setup
	@$(VENV)/python .ci/make_references.py real
	@$(VENV)/python .ci/make_references.py samples runs/cats32

clean:
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info site class
