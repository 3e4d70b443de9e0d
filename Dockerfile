# An image with `proteus` as its command:
#
#     docker build --build-arg TORCH_INDEX=ADDRESS -t proteus-distill .
#     docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" proteus-distill demo --out runs/demo
#
# ADDRESS is that of torch's wheels for the CPU, as torch's own page on installing it says, and keeps
# the image small. Without it torch comes with CUDA, in several GB (and wants --gpus all).

FROM python:3.12-slim AS build
ARG TORCH_INDEX=
WORKDIR /src
RUN python -m venv /opt/proteus
# First, because it changes least and is the largest.
RUN /opt/proteus/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    "torch>=2.6" "torchvision>=0.21"
COPY pyproject.toml README.md LICENSE ./
COPY proteus ./proteus
RUN /opt/proteus/bin/pip install --no-cache-dir .

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 proteus
COPY --from=build /opt/proteus /opt/proteus
# Writable by whatever user the container runs as: caches, and matplotlib's settings.
ENV PATH=/opt/proteus/bin:$PATH HOME=/tmp/home MPLCONFIGDIR=/tmp/home/matplotlib
RUN mkdir -m 1777 /tmp/home /work
WORKDIR /work
USER proteus
ENTRYPOINT ["proteus"]
CMD ["--help"]
