# Rules between stages are file to file; each stage writes its last file only when it has finished, so a killed `make`
# goes on where it stopped.  Code is not a prerequisite: editing a comment must not retrain for two days.  To redo a
# stage, delete its folder.
SHELL         := bash
.SHELLFLAGS   := -eu -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce report test check bench clean

PRESET  ?= demo
DATA    ?=
SOURCE  ?= Vendor=A
TARGET  ?= Vendor=B,C,D
NETWORKS ?= vanilla nnunet2d nnunet3d
# What each network is trained on; `demo` leaves real + synthetic together out, to stay within half an hour on two cores.
TRAINED ?= real synthetic$(if $(filter demo,$(PRESET)),, both)
# Controls of DG: real images with nnU-Net's intensity augmentation (an nnU-Net has it anyway); references whose look was
# changed but that no diffusion model has seen.
CONTROLS ?= vanilla-augmented vanilla-shifted$(if $(filter paper,$(PRESET)), nnunet2d-shifted nnunet3d-shifted)
# More behind one flag each.  UPPER=1: an upper bound, every network trained on each target's own training studies (the
# phantom gets some).  DOSES="1 2 4 8": DG with so many synthetic images per reference.  SHUFFLED=1: DG whose masks were
# exchanged between references, which must fail.  LONG=1: `demo` with nnU-Nets trained twice as long and 8 images per
# reference in DG.
UPPER   ?=
DOSES   ?=
SHUFFLED ?=
LONG    ?=
ifneq ($(and $(LONG),$(filter-out demo,$(PRESET))),)
$(error LONG=1 is for PRESET=demo; `paper` trains in full)
endif
SEED    ?= 0
SEEDS   ?= 1# trainings from SEED on; more than one adds a table of their spread
RUNS    ?= runs
# Stages at a time.  Two small networks train 1.4 times as fast beside each other, one thread each, than one after the
# other on two; a GPU takes one at a time.
JOBS    ?= $(if $(filter paper,$(PRESET)),1,2)
THREADS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores > $(JOBS) ? cores / $(JOBS) : 1)))

# The interpreter: .venv, made from requirements.txt, unless PYTHON names one that already has the packages.
ifdef PYTHON
PY   := $(PYTHON)
VENV :=
else
PY   := .venv/bin/python
VENV := .venv/installed
endif

# The dataset: the phantom of the preset, written on demand, or DATA.
ifeq ($(DATA),)
DATASET := data/phantom-$(PRESET)$(if $(UPPER),-upper)
PHANTOM := $(DATASET)/phantom_params.json
else
DATASET := $(DATA)
PHANTOM :=
endif
comma := ,
list   = $(subst $() ,$(comma),$(strip $(1)))
R     := $(RUNS)/$(PRESET)$(if $(LONG),-long)/$(subst $() ,+,$(notdir $(patsubst %/,%,$(subst $(comma), ,$(DATASET)))))-$(subst $(comma),+,$(subst =,-,$(SOURCE)-to-$(TARGET)))-seed$(SEED)
ARGS   = --preset $(PRESET) --data "$(DATASET)" --source "$(SOURCE)" --seed $(SEED) --work "$(RUNS)/$(PRESET)/work"
# What LONG=1 changes: of DG, and of a network's training.
SAMPLES := $(if $(LONG),--samples 8)
steps    = $(if $(LONG),$(if $(filter nnunet%,$(1)),--steps 6240))
SEG   := $(foreach network,$(NETWORKS),$(R)/segmenter-$(network))
# Vendor=B,C,D as Vendor-B Vendor-C Vendor-D, if each has its own networks.
column := $(firstword $(subst =, ,$(TARGET)))
OWN   := $(if $(UPPER),$(addprefix $(column)-,$(subst $(comma), ,$(lastword $(subst =, ,$(TARGET))))))
FIRST := $(firstword $(NETWORKS))
COMPARED := $(foreach network,$(NETWORKS),$(addprefix $(network)-,$(TRAINED) $(OWN)) $(filter $(network)-%,$(CONTROLS))) \
            $(addprefix $(FIRST)-,$(if $(SHUFFLED),shuffled) $(DOSES:%=dose%))
AUDITOR := $(R)/segmenter-$(FIRST)-real/final.pt

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "  PRESET=$(PRESET) (tiny, demo, paper)   DATA=$(DATA) (a dataset; empty: the phantom)"
	@echo "  SOURCE=$(SOURCE)   TARGET=$(TARGET)   SEED=$(SEED)   SEEDS=$(SEEDS)   NETWORKS="$(NETWORKS)"   PYTHON=(your own interpreter)   RUNS=$(RUNS)"
	@echo "  more rows: UPPER=1   DOSES=\"1 2 4 8\"   SHUFFLED=1   LONG=1   TRAINED=\"real synthetic both\""

seeds := $(shell seq $(SEED) $$(($(SEED) + $(SEEDS) - 1)))
of_seed = $(R:%-seed$(SEED)=%-seed$(1))

reproduce: ## run what is missing of both experiments and print the table
	@for seed in $(seeds); do OMP_NUM_THREADS=$(THREADS) $(MAKE) --no-print-directory -j $(JOBS) SEED=$$seed report; done
	@$(foreach seed,$(seeds),cat "$(call of_seed,$(seed))/results/report.md"; echo; echo "figures and per-case numbers: $(call of_seed,$(seed))/results";)
	@$(if $(filter-out 1,$(SEEDS)),$(PY) -m cmr.spread --runs "$(call list,$(foreach seed,$(seeds),$(call of_seed,$(seed))))" --out "$(call of_seed,$(SEED))/results/seeds.md")

report: $(R)/results/report.md

test: $(VENV) ## run the tests
	$(PY) -m pytest -q tests

check: $(VENV) $(PHANTOM) ## look the dataset over: counts, spacings, labels, anomalies, leakage
	$(PY) -m cmr.check "$(DATASET)" --preset $(PRESET) --source "$(SOURCE)" --target "$(TARGET)"

bench: $(VENV) ## measure the speed of the parts on this machine
	$(PY) -m cmr.bench

clean: ## delete runs and the phantom; your own data and .venv stay
	rm -rf "$(RUNS)" data/phantom-*

.venv/installed: requirements.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt
	@touch $@

data/phantom-%/phantom_params.json: | $(VENV)
	$(PY) -m cmr.phantom --preset $* --out "$(@D)"

data/phantom-%-upper/phantom_params.json: | $(VENV)
	$(PY) -m cmr.phantom --preset $* --target-training $(if $(filter tiny,$*),2,40) --out "$(@D)"

$(R)/check/check.json: $(PHANTOM) | $(VENV)
	$(PY) -m cmr.check "$(DATASET)" --preset $(PRESET) --source "$(SOURCE)" --target "$(TARGET)" --out "$(@D)"

$(R)/diffusion/final.pt: $(R)/check/check.json
	$(PY) train_diffusion.py $(ARGS) --out "$(@D)"

$(SEG:=-real/final.pt): $(R)/segmenter-%-real/final.pt: $(R)/check/check.json
	$(PY) train_unet.py $(ARGS) --network $* $(call steps,$*) --out "$(@D)"

# DG: references with a changed look, projected to the source; `shifted` are the same references, not projected.
$(R)/dg/manifest.csv: $(R)/diffusion/final.pt $(AUDITOR)
	$(PY) -m cmr.synthesize $(ARGS) --arm dg $(SAMPLES) --diffusion "$<" --segmenter "$(AUDITOR)" --out "$(@D)"

$(R)/shifted/manifest.csv: $(R)/diffusion/final.pt $(AUDITOR)
	$(PY) -m cmr.synthesize $(ARGS) --arm dg $(SAMPLES) --strength none --diffusion "$<" --segmenter "$(AUDITOR)" --out "$(@D)"

$(R)/choice/choice.json: $(R)/diffusion/final.pt $(SEG:=-real/final.pt)
	$(PY) -m cmr.choose $(ARGS) --target "$(TARGET)" --run "$(R)" --networks "$(call list,$(NETWORKS))" --out "$(@D)"

$(R)/da/manifest.csv: $(R)/diffusion/final.pt $(AUDITOR) $(R)/choice/choice.json
	$(PY) -m cmr.synthesize $(ARGS) --arm da --target "$(TARGET)" --choice "$(R)/choice/choice.json" --diffusion "$<" --segmenter "$(AUDITOR)" --out "$(@D)"

# The same plan, and so the same batches, whatever the network is trained on.
plan = $(if $(filter nnunet%,$(1)),--plan "$(R)/segmenter-$(1)-real/plan.json")

paired = $(PY) train_unet.py $(ARGS) --network $(1) $(call steps,$(1)) $(call plan,$(1)) --train-on $(2) --synthetic "$(<D)" --out "$(@D)"

$(SEG:=-synthetic/final.pt): $(R)/segmenter-%-synthetic/final.pt: $(R)/dg/manifest.csv $(R)/segmenter-%-real/final.pt
	$(call paired,$*,synthetic)

$(SEG:=-both/final.pt): $(R)/segmenter-%-both/final.pt: $(R)/dg/manifest.csv $(R)/segmenter-%-real/final.pt
	$(call paired,$*,both)

$(SEG:=-shifted/final.pt): $(R)/segmenter-%-shifted/final.pt: $(R)/shifted/manifest.csv $(R)/segmenter-%-real/final.pt
	$(call paired,$*,synthetic)

$(R)/segmenter-$(FIRST)-shuffled/final.pt: $(R)/segmenter-%-shuffled/final.pt: $(R)/dg/manifest.csv $(R)/segmenter-%-real/final.pt
	$(call paired,$*,synthetic) --shuffle-masks

$(R)/dose/manifest.csv: $(R)/diffusion/final.pt $(AUDITOR)
	$(PY) -m cmr.synthesize $(ARGS) --arm dg --samples $(lastword $(DOSES)) --diffusion "$<" --segmenter "$(AUDITOR)" --out "$(@D)"

$(DOSES:%=$(R)/segmenter-$(FIRST)-dose%/final.pt): $(R)/segmenter-$(FIRST)-dose%/final.pt: $(R)/dose/manifest.csv $(R)/segmenter-$(FIRST)-real/final.pt
	$(call paired,$(FIRST),synthetic) --dose $*

$(foreach network,$(NETWORKS),$(OWN:%=$(R)/segmenter-$(network)-%/final.pt)): $(R)/segmenter-%/final.pt: $(R)/check/check.json
	$(PY) train_unet.py $(ARGS) --source $(column)=$(lastword $(subst -$(column)-, ,$*)) --network $(firstword $(subst -$(column)-, ,$*)) $(call steps,$*) --out "$(@D)"

$(R)/segmenter-vanilla-augmented/final.pt: $(R)/check/check.json
	$(PY) train_unet.py $(ARGS) --network vanilla --augment --out "$(@D)"

# In the order in which two at a time are busy until the end: the longest trainings first, the short ones last.
reverse = $(if $(1),$(call reverse,$(wordlist 2,$(words $(1)),$(1))) $(firstword $(1)))
TRAININGS := $(call reverse,$(COMPARED:%=$(R)/segmenter-%/final.pt))
LONGEST := $(R)/segmenter-nnunet3d-%

$(R)/results/report.md: $(R)/dg/manifest.csv $(filter $(LONGEST),$(TRAININGS)) $(R)/da/manifest.csv $(filter-out $(LONGEST),$(TRAININGS))
	$(PY) evaluate.py $(ARGS) --target "$(TARGET)" --segmenters "$(call list,$(COMPARED))" --run "$(R)" --out "$(@D)"
