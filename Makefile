# The experiment, stage by stage; `make plan` prints what each reads and writes for the given settings.
#
# Rules between stages are file to file; each stage writes its last file only when it has finished, so a killed `make`
# goes on where it stopped.  Code is not a prerequisite: editing a comment must not retrain for two days.  To redo a
# stage, delete its folder.
SHELL         := bash
.SHELLFLAGS   := -eu -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce example estimate rehearse plan report test check bench clean

# ---- Settings ----------------------------------------------------------------------------------------------------

comma    := ,
PRESET   ?= demo
DATA     ?=
SOURCE   ?= Vendor=A
TARGET   ?= Vendor=B$(if $(REHEARSE),,$(comma)C$(comma)D)
NETWORKS ?= vanilla nnunet2d nnunet3d
# What each network is trained on; `demo`, `small` and `lab` leave real + synthetic out, to stay within an hour or an
# afternoon on two cores and a night on one GPU.
TRAINED  ?= real synthetic$(if $(filter demo small lab,$(PRESET)),, both)
# Controls of DG: real images with nnU-Net's intensity augmentation (an nnU-Net has it anyway); references whose look was
# changed but that no diffusion model has seen.
CONTROLS ?= vanilla-augmented vanilla-shifted$(if $(filter paper,$(PRESET)), nnunet2d-shifted nnunet3d-shifted)
# More behind one flag each.  UPPER=1: an upper bound, every network trained on each target's own training studies (the
# phantom gets some).  DOSES="1 2 4 8": DG with so many synthetic images per reference.  SHUFFLED=1: DG whose masks were
# exchanged between references, which must fail.
UPPER    ?=
DOSES    ?=
SHUFFLED ?=
SEED     ?= 0
SEEDS    ?= 1# trainings from SEED on; more than one adds a table of their spread
# Numbers in place of patients' identifiers in the results; the key lies beside them in a file of its own.
PSEUDONYMS ?=
RUNS     ?= runs
# Two steps of every stage at the preset's full size, on a phantom of a few studies and towards one target: does it fit,
# is every type right?
REHEARSE ?=
# Ranks that work on each stage together: as many as there are GPUs to use.
GPUS     ?= 1
# Stages at a time.  Two small networks train 1.4 times as fast beside each other, one thread each, than one after the
# other on two; a GPU takes one at a time.
JOBS     ?= $(if $(filter lab paper,$(PRESET))$(filter-out 1,$(GPUS)),1,2)
SHARES    = $$(($(JOBS) * $(GPUS)))
THREADS  ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores > $(SHARES) ? cores / $(SHARES) : 1)))

is_number = $(shell [[ "$(1)" =~ ^[0-9]+$$ ]] && echo yes)
$(foreach name,SEED SEEDS JOBS GPUS,$(if $(call is_number,$(strip $($(name)))),,$(error $(name)=$($(name)): use a whole number)))
$(if $(filter $(PRESET),tiny demo small lab paper),,$(error PRESET=$(PRESET): use tiny, demo, small, lab or paper))
$(foreach name,DATA RUNS SOURCE TARGET,$(if $(word 2,$($(name))),$(error $(name)=$($(name)): make takes no spaces in it)))

# ---- Names that follow from them ---------------------------------------------------------------------------------

# The interpreter: .venv, made from requirements.txt, unless PYTHON names one that already has the packages.
ifdef PYTHON
PY   := $(PYTHON)
VENV :=
else
PY   := .venv/bin/python
VENV := .venv/installed
endif

# The dataset: DATA, or the phantom of the preset, written on demand.
ifdef DATA
DATASET := $(DATA)
PHANTOM :=
else
DATASET := data/phantom-$(if $(REHEARSE),tiny,$(PRESET))$(if $(UPPER),-upper)
PHANTOM := $(DATASET)/phantom_params.json
endif

commas   = $(subst $() ,$(comma),$(strip $(1)))
as_path  = $(subst $(comma),+,$(subst =,-,$(1)))
FOLDERS := $(patsubst %/,%,$(subst $(comma), ,$(DATASET)))
# Two datasets whose last folders are called alike have runs of their own: the sum is of the whole paths.
SUM     := $(if $(DATA),-$(firstword $(shell echo $(abspath $(FOLDERS)) | cksum)))
NAME    := $(subst $() ,+,$(notdir $(FOLDERS)))$(SUM)-$(call as_path,$(SOURCE)-to-$(TARGET))
OF      := $(RUNS)/$(if $(REHEARSE),rehearsal-)$(PRESET)
BASE    := $(OF)/$(NAME)
R       := $(BASE)-seed$(SEED)
ALL_R   := $(addprefix $(BASE)-seed,$(shell seq $(SEED) $$(($(SEED) + $(SEEDS) - 1))))
RANKED  := $(PY)$(if $(filter-out 1,$(GPUS)), -m cmr.ranks $(GPUS))
ARGS     = --preset $(PRESET) --data "$(DATASET)" --source "$(SOURCE)" --seed $(SEED) --work "$(OF)/work"$(if $(UPPER), --upper-bound)

# The few steps of a rehearsal.
SHORT_UNET := $(if $(REHEARSE), --steps 2 --epoch-steps 1 --validation-batches 1 --workers 1 --log-every 1)
SHORT_SD   := $(if $(REHEARSE), --steps 2 --batch 2 --log-every 1 --sheet 1 --sheet-steps 2)

ONE_STEP   := t0=100,low_pass=2,steps=1
GUIDED     := t0=100,guide_mm=30,steps=1
SHORT_DG   := $(if $(REHEARSE), --samples 1 --strength "$(ONE_STEP)")
SHORT_DA   := $(if $(REHEARSE), --strength "$(ONE_STEP);$(GUIDED)")
SHORT_EVAL := $(if $(REHEARSE), --projected "$(ONE_STEP)" --guided "$(GUIDED)")

# Segmenters are called NETWORK-TRAININGSET.  An upper bound's training set is a target: Vendor-B, Vendor-C, Vendor-D.
FIRST    := $(firstword $(NETWORKS))
COLUMN   := $(firstword $(subst =, ,$(TARGET)))
TARGETS  := $(addprefix $(COLUMN)-,$(subst $(comma), ,$(lastword $(subst =, ,$(TARGET)))))
BOUNDS   := $(if $(UPPER),$(foreach network,$(NETWORKS),$(addprefix $(network)-,$(TARGETS))))
EXTRAS   := $(addprefix $(FIRST)-,$(if $(SHUFFLED),shuffled) $(DOSES:%=dose%))
of        = $(addprefix $(1)-,$(TRAINED)) $(filter $(1)-%,$(BOUNDS)) $(filter $(1)-%,$(CONTROLS))
COMPARED := $(strip $(foreach network,$(NETWORKS),$(call of,$(network))) $(EXTRAS))
files     = $(1:%=$(R)/segmenter-%/final.pt)
AUDITOR  := $(call files,$(FIRST)-real)

# ---- Commands ----------------------------------------------------------------------------------------------------

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "  PRESET=$(PRESET) (tiny, demo, small, lab, paper)   DATA=$(DATA) (a dataset; empty: the phantom)"
	@echo "  SOURCE=$(SOURCE)   TARGET=$(TARGET)   SEED=$(SEED)   SEEDS=$(SEEDS)   NETWORKS="$(NETWORKS)"   PYTHON=(your own interpreter)   RUNS=$(RUNS)"
	@echo "  GPUS=$(GPUS) (ranks that share the work of each stage)   JOBS=$(JOBS) (stages at a time)"
	@echo "  more rows: UPPER=1   DOSES=\"1 2 4 8\"   SHUFFLED=1   TRAINED=\"real synthetic both\"   PSEUDONYMS=1"

reproduce: ## run what is missing of both experiments and print the table
	@for run in $(ALL_R); do OMP_NUM_THREADS=$(THREADS) $(MAKE) --no-print-directory -j $(JOBS) SEED=$${run##*-seed} report; done
	@for run in $(ALL_R); do cat "$$run/results/report.md"; echo; echo "figures and per-case numbers: $$run/results"; done
	@$(if $(filter-out 1,$(SEEDS)),$(PY) -m cmr.seed_spread --runs "$(call commas,$(ALL_R))" --out "$(R)/results/seeds.md")

EXAMPLE := runs/example
example: $(VENV) data/phantom-example/phantom_params.json ## five minutes: train a little, translate an image of another vendor, segment it with and without
	$(MAKE) --no-print-directory -j $(JOBS) $(EXAMPLE)/diffusion/final.pt $(EXAMPLE)/segmenter/final.pt
	cp data/phantom-example/OpenDataset/Testing/*/*_sa.nii.gz $(EXAMPLE)/heart.nii.gz
	$(PY) -m cmr.translate $(EXAMPLE)/heart.nii.gz --diffusion $(EXAMPLE)/diffusion/final.pt --out $(EXAMPLE)/translated
	$(PY) -m cmr.segment $(EXAMPLE)/heart.nii.gz --segmenter $(EXAMPLE)/segmenter/final.pt --out $(EXAMPLE)/masks
	$(PY) -m cmr.segment $(EXAMPLE)/heart.nii.gz --segmenter $(EXAMPLE)/segmenter/final.pt --diffusion $(EXAMPLE)/diffusion/final.pt --out $(EXAMPLE)/masks-da
	@echo "look at $(EXAMPLE)/masks-da/heart.png: each slice as it is segmented, given the look of vendor A, segmented with both"

IN_EXAMPLE = --data data/phantom-example --work $(EXAMPLE)/work --out $(@D)
$(EXAMPLE)/diffusion/final.pt: data/phantom-example/phantom_params.json
	OMP_NUM_THREADS=$(THREADS) $(PY) train_diffusion.py $(IN_EXAMPLE) --steps 2000

$(EXAMPLE)/segmenter/final.pt: data/phantom-example/phantom_params.json
	OMP_NUM_THREADS=$(THREADS) $(PY) train_unet.py $(IN_EXAMPLE) --steps 1200

data/phantom-example/phantom_params.json: | $(VENV)
	$(PY) -m cmr.phantom --counts example --out $(@D)

estimate: $(VENV) $(PHANTOM) ## what reproduce will take here, by some real steps of every stage: hours, memory, disk
	$(call estimated,)

rehearse: ## two steps of every stage at the full size of PRESET, before hours are spent on it
	@$(MAKE) --no-print-directory REHEARSE=1 anew
	@$(MAKE) --no-print-directory REHEARSE=1 reproduce

plan: ## print the stages in order: whether done, what each reads and writes
	@echo "data $(DATASET)   run folder $(R)"
	@$(MAKE) --no-print-directory -B -j 1 PLAN=1 report

report: $(R)/results/report.md

test: $(VENV) ## run the tests
	$(PY) -m pytest -q tests

check: $(VENV) $(PHANTOM) ## look the dataset over: counts, spacings, labels, anomalies, leakage
	$(check)

bench: $(VENV) ## measure the speed of the parts on this machine
	$(PY) -m cmr.bench

STAGES := check diffusion segmenter-* dg shifted dose* da results*
.PHONY: anew
anew:
	rm -rf $(foreach run,$(ALL_R),$(addprefix $(run)/,$(STAGES)))

clean: ## delete what the stages wrote below RUNS, and phantoms; all else stays
	rm -rf $(foreach stage,$(STAGES),$(RUNS)/*/*-seed*/$(stage)) $(RUNS)/*/work
	for settings in data/phantom-*/.settings.json; do test ! -e "$$settings" || rm -rf "$${settings%/*}"; done
	test ! -d "$(RUNS)" || find "$(RUNS)" -depth -type d -empty -delete

# ---- The stages, in order ----------------------------------------------------------------------------------------

# A stage's command; with PLAN=1 (make plan) a description in its place.  A stage is to be done if its file is missing or
# older than what it is made from, or if that is to be done itself.
in_run = $(patsubst $(R)/%,%,$(1))
to_do  = $(or $(filter $(TO_DO),$^),$(shell test -e "$@" || echo yes; for f in $^; do test ! "$$f" -nt "$@" || echo yes; done))
define describe
$(eval STATE := $(if $(to_do),to do,done))
$(eval TO_DO += $(if $(filter done,$(STATE)),,$@))
@printf '%-6s %s\n       reads %s\n' "$(STATE)" "$(call in_run,$@)" "$(or $(call in_run,$^),$(FOLDERS))"
endef
stage = $(if $(PLAN),$(describe),$(1))

.venv/installed: requirements.txt
	$(call stage,python3 -m venv .venv)
	$(if $(PLAN),,.venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt)
	$(if $(PLAN),,@touch $@)

data/phantom-%/phantom_params.json: | $(VENV)
	$(call stage,$(PY) -m cmr.phantom --preset $* --out "$(@D)")

data/phantom-%-upper/phantom_params.json: | $(VENV)
	$(call stage,$(PY) -m cmr.phantom --preset $* --target-training $(if $(filter tiny,$*),2,40) --out "$(@D)")

# 1. The rows that are asked for.  When they are others than before, the check and the report are made again.
.PHONY: ask
TO_DO := ask
ROWS  := $(COMPARED)$(if $(UPPER), upper-bound)$(if $(PSEUDONYMS), pseudonyms)
ifneq ($(ROWS),$(shell cat "$(R)/check/rows" 2>/dev/null))
TO_DO += $(R)/check/rows
$(R)/check/rows: ask
endif
$(R)/check/rows:
	$(if $(PLAN),,@mkdir -p "$(@D)" && echo "$(ROWS)" > "$@")

# Is the dataset what they need?  Asked again when a file of it was changed, added or lost; check.json is written only if
# the answer is another one, and what was made of other data is refused by the stages.
check    = $(PY) -m cmr.check_dataset $(ARGS) --target "$(TARGET)" --segmenters "$(call commas,$(COMPARED))"
CHANGED := $(if $(wildcard $(R)/check/asked),$(shell find -L $(FOLDERS) -cnewer $(R)/check/asked 2>&1 | head -n 1))
$(R)/check/check.json: $(R)/check/asked ;
$(R)/check/asked: $(R)/check/rows $(PHANTOM) $(if $(CHANGED),ask) | $(VENV)
	$(call stage,$(check) --out "$(@D)")
	$(if $(PLAN),,@touch $@)

# What it will take, said once before the first long stage; `tiny` and a rehearsal are shorter than an estimate.
estimated = OMP_NUM_THREADS=$(THREADS) $(PY) -m cmr.estimate $(ARGS) --target "$(TARGET)" --segmenters "$(call commas,$(COMPARED))" --jobs $(JOBS) --ranks $(GPUS)$(1)
BEGUN    := $(wildcard $(R)/diffusion)$(filter tiny,$(PRESET))$(REHEARSE)
ESTIMATE := $(if $(BEGUN),,$(R)/check/estimate.md)
$(R)/check/estimate.md: | $(R)/check/check.json
	$(call stage,$(call estimated, --out "$(@D)"))
FROM_CHECK := $(NETWORKS:%=%-real) $(NETWORKS:%=%-augmented) $(BOUNDS)
$(R)/diffusion/final.pt $(call files,$(FROM_CHECK)): | $(ESTIMATE)

# 2. The diffusion model of the source (SD-DM), and every network on the source's real images: the baselines.
$(R)/diffusion/final.pt: $(R)/check/check.json
	$(call stage,$(RANKED) train_diffusion.py $(ARGS)$(SHORT_SD) --out "$(@D)")

train = $(RANKED) train_unet.py $(ARGS)$(SHORT_UNET) --network $(1) --out "$(@D)"
$(call files,$(NETWORKS:%=%-real)): $(R)/segmenter-%-real/final.pt: $(R)/check/check.json
	$(call stage,$(call train,$*))

# 3. DG: references with a changed look, projected to the source; `shifted` are the same references, not projected;
# `dose4` has four images of each.
dg = $(RANKED) -m cmr.synthesize $(ARGS)$(SHORT_DG) --arm dg --diffusion "$<" --segmenter "$(AUDITOR)" --out "$(@D)"
$(R)/dg/manifest.csv: $(R)/diffusion/final.pt $(AUDITOR)
	$(call stage,$(dg))

# Once DG's images are there every training can begin.  The long ones wait for that moment: make walks along its list and
# starts what is ready, so that without this a long one begins last, beside an idle core.
$(filter-out $(AUDITOR),$(call files,$(NETWORKS:%=%-real))): | $(R)/dg/manifest.csv

$(R)/shifted/manifest.csv: $(R)/diffusion/final.pt $(AUDITOR)
	$(call stage,$(dg) --strength none)

$(DOSES:%=$(R)/dose%/manifest.csv): $(R)/dose%/manifest.csv: $(R)/diffusion/final.pt $(AUDITOR)
	$(call stage,$(dg) --samples $*)

# 4. DA: the test studies of every domain, projected to the source.
$(R)/da/manifest.csv: $(R)/diffusion/final.pt $(AUDITOR)
	$(call stage,$(RANKED) -m cmr.synthesize $(ARGS)$(SHORT_DA) --arm da --target "$(TARGET)" --diffusion "$<" --segmenter "$(AUDITOR)" --out "$(@D)")

# 5. The networks trained on synthetic pairs, in place of the real images or beside them.
pairs = $(call train,$(1)) --train-on $(2) --synthetic "$(<D)"
$(call files,$(NETWORKS:%=%-synthetic)): $(R)/segmenter-%-synthetic/final.pt: $(R)/dg/manifest.csv
	$(call stage,$(call pairs,$*,synthetic))

$(call files,$(NETWORKS:%=%-both)): $(R)/segmenter-%-both/final.pt: $(R)/dg/manifest.csv
	$(call stage,$(call pairs,$*,both))

$(call files,$(NETWORKS:%=%-shifted)): $(R)/segmenter-%-shifted/final.pt: $(R)/shifted/manifest.csv
	$(call stage,$(call pairs,$*,synthetic))

$(call files,$(FIRST)-shuffled): $(R)/dg/manifest.csv
	$(call stage,$(call pairs,$(FIRST),synthetic) --shuffle-masks)

$(call files,$(DOSES:%=$(FIRST)-dose%)): $(R)/segmenter-$(FIRST)-dose%/final.pt: $(R)/dose%/manifest.csv
	$(call stage,$(call pairs,$(FIRST),synthetic))

# 6. Controls on real images: more augmentation; the upper bound, on each target's own training studies.
$(call files,$(NETWORKS:%=%-augmented)): $(R)/segmenter-%-augmented/final.pt: $(R)/check/check.json
	$(call stage,$(call train,$*) --augment)

bound = $(subst -$(COLUMN)-, ,$*)
$(call files,$(BOUNDS)): $(R)/segmenter-%/final.pt: $(R)/check/check.json
	$(call stage,$(call train,$(firstword $(bound))) --domain "$(COLUMN)=$(lastword $(bound))")

# 7. Every row on every domain's test studies.  The longest trainings come first: two at a time are busy until the end.
LONG_ONES := $(call files,$(filter nnunet3d-%,$(COMPARED)))
THE_REST  := $(call files,$(filter nnunet2d-%,$(COMPARED)) $(filter-out nnunet2d-% nnunet3d-%,$(COMPARED)))
$(R)/results/report.md: $(R)/check/rows $(R)/dg/manifest.csv $(LONG_ONES) $(R)/da/manifest.csv $(THE_REST)
	$(call stage,$(RANKED) evaluate.py $(ARGS)$(SHORT_EVAL) --target "$(TARGET)" --segmenters "$(call commas,$(COMPARED))" --run "$(R)" --out "$(@D)"$(if $(PSEUDONYMS), --pseudonyms))
