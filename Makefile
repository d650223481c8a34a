# make setup   the environment, into .venv, from constraints.txt, and an archive of Spark's classes
# make archive the archive alone: Spark's classes as Java has them in memory, with which it starts 5 s sooner
# make grid    the main job: [IMAGES=dir WEIGHTS=dir|imagenet|random CONFIG=file RUN=dir FEATURES=dir ARGS="--limit 400"]
# make bench   what this machine does: [IMAGES=dir WEIGHTS=... PEERS=dir OUT=file.json ARGS="--limit 1600"]
# make test    the tests, in TESTERS processes side by side (2)
# make test-faults  kills ten times each, and 200,000 fuzzed inputs: an hour and a half on two cores
# make test-full  what the tests leave out: simulations of 2,000 studies, a million images, maps beyond memory: hours
# make test-jax  the compute core alone under Keras on JAX, in an environment without Spark and TensorFlow
# make test-torch  likewise on PyTorch
# make test-docker  the image and the cluster of docker/, with a worker killed: needs a Docker engine
# make lint    ruff and mypy
# make audit   known vulnerabilities of the installed packages, by pip-audit, which needs a network

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
IN_VENV := env -u SPARK_CONF_DIR PATH="$(CURDIR)/$(VENV)/bin:$$PATH" PYSPARK_PYTHON="$(CURDIR)/$(VENV)/bin/python"

CONFIG ?= conf/demo.yaml
RUN ?= runs/$(basename $(notdir $(CONFIG)))
SPARK_CONF ?= conf/spark-local.conf
FLAGS = --config "$(CONFIG)" --run "$(RUN)" $(if $(IMAGES),--images "$(IMAGES)") \
	$(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(FEATURES),--features "$(FEATURES)") $(ARGS)

TESTERS ?= 2
OUT ?= runs/benchmark.json
BENCH_FLAGS = --out "$(OUT)" $(if $(IMAGES),--images "$(IMAGES)") $(if $(WEIGHTS),--weights "$(WEIGHTS)") \
	$(if $(PEERS),--peers "$(PEERS)") $(ARGS)

.PHONY: setup archive grid bench test test-faults test-full test-jax test-torch test-docker lint audit check-tools clean

setup: check-tools $(VENV)/.installed
	@test $(VENV)/.archived -nt $(VENV)/.installed || $(MAKE) --no-print-directory archive

grid: setup
	@$(IN_VENV) spark-submit --properties-file "$(SPARK_CONF)" jobs/grid.py $(FLAGS)

bench: setup
	@mkdir -p "$(dir $(OUT))"
	@$(IN_VENV) spark-submit --properties-file "$(SPARK_CONF)" jobs/benchmark.py $(BENCH_FLAGS)

test: setup
	@$(IN_VENV) python -m pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: setup
	@CXR_FAULTS=full CXR_FUZZ_EXAMPLES=215000 $(IN_VENV) python -m pytest -s tests/test_faults.py tests/test_fuzz.py \
		tests/test_hostile_files.py tests/extraction/test_hostile_files.py $(ARGS)

test-full: setup
	@CXR_FULL=1 $(IN_VENV) python -m pytest -s tests/evaluation tests/benchmark tests/training/test_beyond_memory.py \
		tests/extraction/test_growth.py tests/test_backbones.py tests/test_peers.py tests/test_shipping.py $(ARGS)

test-jax: setup $(VENV)-jax/.installed
	@CXR_JAX_PYTHON="$(CURDIR)/$(VENV)-jax/bin/python" $(IN_VENV) python -m pytest tests/benchmark/test_engine_only.py $(ARGS)

test-torch: setup $(VENV)-torch/.installed
	@CXR_TORCH_PYTHON="$(CURDIR)/$(VENV)-torch/bin/python" $(IN_VENV) python -m pytest tests/benchmark/test_engine_only.py $(ARGS)

test-docker:
	@docker/test.sh

lint: setup
	@$(IN_VENV) ruff check . && $(IN_VENV) ruff format --check . && $(IN_VENV) mypy

audit: setup $(VENV)-audit/.installed
	@$(VENV)-audit/bin/python .ci/audit.py "$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# An environment of its own, so that what it needs changes nothing in what it looks at.
$(VENV)-audit/.installed: check-tools
	@test -e $@ || { "$(PYTHON)" -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install --quiet pip-audit && touch $@; }

# What the README names for GPU machines without TensorFlow, with JAX or PyTorch.
$(VENV)-jax/.installed $(VENV)-torch/.installed: $(VENV)-%/.installed: check-tools constraints.txt
	@"$(PYTHON)" -m venv $(VENV)-$*
	@$(VENV)-$*/bin/python -m pip install --quiet --constraint constraints.txt keras numpy opencv-python-headless \
		pillow matplotlib $*
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt "setuptools<70" wheel
	@$(VENV)/bin/python -m pip install --quiet --no-build-isolation --constraint constraints.txt --editable ".[dev]"
	@touch $@

# What Java has loaded by the end of a small run, for conf/spark-local.conf, which names the file.
archive:
	@rm -f $(VENV)/spark.jsa; run=$(VENV)/archived-$$$$; \
	$(IN_VENV) spark-submit --properties-file conf/spark-local.conf --master 'local[1]' \
		--driver-java-options "-XX:TieredStopAtLevel=1 -XX:ArchiveClassesAtExit=$(VENV)/spark.jsa -Xlog:disable -Dlog4j2.configurationFile=conf/log4j2.properties" \
		jobs/grid.py --config conf/demo.yaml --run $$run --backbones MobileNetV3Small --heads gap --seeds 0 \
		>$(VENV)/archive.log 2>&1 && test -s $(VENV)/spark.jsa || { rm -f $(VENV)/spark.jsa; \
		echo "Spark's classes could not be archived ($(VENV)/archive.log): all works, and Spark starts 5 s later" >&2; }; \
	rm -rf $$run; touch $(VENV)/.archived

check-tools:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "cxr_spark needs Python 3.11, and found $$('$(PYTHON)' --version 2>&1 | head -n 1). Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || { \
		echo "cxr_spark needs Python's venv module. On Debian and Ubuntu: apt-get install python3.11-venv" >&2; exit 2; }
	@java=$${JAVA_HOME:+$$JAVA_HOME/bin/}java; \
	version=$$($$java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p'); \
	test "$${version:-0}" -ge 17 || { \
		echo "cxr_spark needs Java 17 or 21 (java on the PATH, or JAVA_HOME), and found $${version:-none}. On Debian and Ubuntu: apt-get install openjdk-17-jre-headless" >&2; exit 2; }

clean:
	rm -rf $(VENV) $(VENV)-audit $(VENV)-jax $(VENV)-torch build *.egg-info .pytest_cache .mypy_cache .ruff_cache
