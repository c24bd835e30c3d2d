# memorysam in a container that is not root.
#
#   docker build -t memorysam .
#   docker run --rm -v "$PWD:/work" memorysam demo --out .demo
#   docker run --rm --gpus all -v "$PWD:/work" memorysam train --recipe deliver
#
# The index's own PyTorch for Linux brings CUDA, and runs on a CPU too. For the smaller one without CUDA name the
# address that pytorch.org gives for it: --build-arg TORCH_INDEX=…
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore SAM2_BUILD_CUDA=0
WORKDIR /source
RUN python -m venv /opt/memorysam
ENV PATH=/opt/memorysam/bin:$PATH
COPY constraints.txt ./
# sam2 is published as source only and needs torch to build itself; so the build tools and torch come first.
RUN pip install -c constraints.txt setuptools wheel hatchling editables
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY memorysam_cli memorysam_cli
RUN pip install -c constraints.txt --no-build-isolation .

FROM python:${PYTHON}-slim-bookworm
COPY --from=build /opt/memorysam /opt/memorysam
RUN useradd --create-home --uid 1000 memorysam
ENV PATH=/opt/memorysam/bin:$PATH PYTHONUNBUFFERED=1
USER memorysam
# Data, runs and results: a folder of the host that user 1000 may write to (or run with --user "$(id -u):$(id -g)").
WORKDIR /work
ENTRYPOINT ["memorysam"]
CMD ["--help"]
