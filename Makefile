# Goals.  What the stages of an experiment are, and how they follow from each other, is in cmr/experiment.py; `make
# plan` prints them.  Code is not a prerequisite: editing a comment must not retrain for two days.  To redo a stage,
# delete its folder.
SHELL         := bash
.SHELLFLAGS   := -eu -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce example estimate rehearse plan test test-whole test-parts check bench clean

# The interpreter: .venv, made from requirements.txt, unless PYTHON names one that already has the packages.
ifdef PYTHON
PY   := $(PYTHON)
VENV :=
else
PY   := .venv/bin/python
VENV := .venv/installed
endif

# What is asked for; the rest is as the preset has it (docs/presets.md).
PRESET ?= demo
SEED   ?= 0
SEEDS  ?= 1
GPUS   ?= 1
RUNS   ?= runs

# The dataset: DATA, or the phantom of the preset, made when it is needed.  Upper bounds need more of its studies.
phantom  = data/phantom-$(1)$(if $(filter 1,$(UPPER)),-upper)
PHANTOM := $(call phantom,$(PRESET))
DATASET := $(or $(DATA),$(PHANTOM))
MADE    := $(if $(DATA),,$(PHANTOM)/phantom_params.json)

asked = $(if $(filter undefined,$(origin $(1))),,--$(2) "$($(1))")
ASKED = --preset "$(PRESET)" --data "$(DATASET)" --seed "$(SEED)" --seeds "$(SEEDS)" --gpus "$(GPUS)" --runs "$(RUNS)" \
        $(call asked,SOURCE,source) $(call asked,TARGET,target) $(call asked,NETWORKS,networks) \
        $(call asked,TRAINED,trained) $(call asked,CONTROLS,controls) $(call asked,REFERENCES,references) \
        $(call asked,UPPER,upper) $(call asked,JOBS,jobs) $(if $(PSEUDONYMS),--pseudonyms)
EXPERIMENT = $(PY) -m cmr.reproduce $(ASKED)

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo '  PRESET=demo (tiny, demo, small, lab, paper)   DATA=folder (without: the phantom)   SOURCE=Vendor=A'
	@echo '  TARGET=Vendor=B,C,D   SEED=0   SEEDS=1   NETWORKS="vanilla nnunet2d nnunet3d"   PYTHON=interpreter'
	@echo '  RUNS=runs   JOBS=2 (stages at a time)   GPUS=1 (ranks that share the work of each stage)'
	@echo '  other rows: UPPER=1 or 0   TRAINED="real synthetic both"   CONTROLS="vanilla-augmented vanilla-shifted"'
	@echo '  REFERENCES=Dataset=ACDC   PSEUDONYMS=1'

reproduce: $(VENV) $(MADE) ## run what is missing of both experiments and print the table
	+@$(EXPERIMENT)

plan: $(VENV) $(MADE) ## print the stages in order: whether done, what each is made from
	@$(EXPERIMENT) --goal plan

estimate: $(VENV) $(MADE) ## what reproduce will take here: hours by stage
	+@$(EXPERIMENT) --goal estimate

check: $(VENV) $(MADE) ## look the dataset over: counts, spacings, labels, anomalies, leakage
	+@$(EXPERIMENT) --goal check

SMALL := $(or $(DATA),$(call phantom,tiny))
rehearse: $(VENV) $(if $(DATA),,$(SMALL)/phantom_params.json) ## two steps of every stage at full size
	+@$(EXPERIMENT) --rehearse --data "$(SMALL)" --target "$(or $(TARGET),Vendor=B)"

# Tests that look at a whole short run, which is made once for them, and all others: a core each.
NAMES := checkpoint faults files pipeline report results_page segment segmenter synthesize train_unet translate
WHOLE := $(NAMES:%=tests/test_%.py)
test: $(VENV) ## run the tests
	+@$(MAKE) --no-print-directory -j 2 test-whole test-parts

test-whole:
	MAKEFLAGS= OMP_NUM_THREADS=1 $(PY) -m pytest -q $(WHOLE)

test-parts:
	MAKEFLAGS= OMP_NUM_THREADS=1 $(PY) -m pytest -q $(filter-out $(WHOLE),$(wildcard tests/test_*.py))

bench: $(VENV) ## measure the speed of the parts on this machine
	$(PY) tests/bench.py

WRITTEN := check,diffusion,dg,shifted,references,da,results,results-key-NOT-TO-BE-SHARED.csv,segmenter-*-*
clean: .SHELLFLAGS := -O extglob $(.SHELLFLAGS)
clean: ## delete what the stages wrote below RUNS, and phantoms; all else stays
	@case "$(RUNS)" in ''|*[[:space:]]*) echo "error: RUNS='$(RUNS)': name a folder without spaces" >&2; exit 2;; esac
	for made in $$(grep -ls '^# Written by cmr.reproduce' $(RUNS)/*/*.mk); do \
	    rm -rf "$${made%-*.mk}"-seed+([0-9])/{$(WRITTEN)} "$${made%/*}/work" "$$made"; \
	    rmdir "$${made%-*.mk}"-seed+([0-9]) "$${made%/*}" "$(RUNS)" 2> /dev/null || true; \
	done
	for settings in data/phantom-*/.settings.json; do rm -rf "$${settings%/*}"; done

# Five minutes: train a little, translate an image of another vendor, segment it as it is and translated.
EXAMPLE := runs/example
example: $(EXAMPLE)/masks-da/heart.png ## train a little, translate an image of another vendor, segment it with and without
	@echo "look at $<: each slice as it is segmented, given the look of vendor A, segmented with both"

HEART := $(EXAMPLE)/heart.nii.gz
MODEL := $(EXAMPLE)/diffusion/final.pt
UNET  := $(EXAMPLE)/segmenter/final.pt
HALF  := $$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 ))
$(EXAMPLE)/masks-da/heart.png: data/phantom-example/phantom_params.json
	+@OMP_NUM_THREADS=$(HALF) $(MAKE) --no-print-directory -j 2 $(MODEL) $(UNET)
	cp data/phantom-example/OpenDataset/Testing/*/*_sa.nii.gz $(HEART)
	$(PY) -m cmr.translate $(HEART) --diffusion $(MODEL) --out $(EXAMPLE)/translated
	$(PY) -m cmr.segment $(HEART) --segmenter $(UNET) --out $(EXAMPLE)/masks
	$(PY) -m cmr.segment $(HEART) --segmenter $(UNET) --diffusion $(MODEL) --out $(EXAMPLE)/masks-da

ON_EXAMPLE := --data data/phantom-example --work $(EXAMPLE)/work
$(MODEL): data/phantom-example/phantom_params.json
	$(PY) train_diffusion.py $(ON_EXAMPLE) --steps 2000 --out $(@D)

$(UNET): data/phantom-example/phantom_params.json
	$(PY) train_unet.py $(ON_EXAMPLE) --steps 1200 --out $(@D)

data/phantom-example/phantom_params.json: | $(VENV)
	$(PY) -m cmr.phantom --counts example --out $(@D)

data/phantom-%/phantom_params.json: | $(VENV)
	$(PY) -m cmr.phantom --preset $* --out $(@D)

data/phantom-%-upper/phantom_params.json: | $(VENV)
	$(PY) -m cmr.phantom --preset $* --target-training $(if $(filter tiny,$*),2,40) --out $(@D)

.venv/installed: requirements.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt
	@touch $@
