# stepscore serve on an NVIDIA GPU. Build in the repository's root:
#   docker build -f docker/cuda.Dockerfile -t stepscore:cuda .
# The wheels of onnxruntime-gpu bring CUDA and cuDNN; the host needs the driver and its container toolkit.
# Run with a pair mounted; the key comes from a file or from STEPSCORE_API_KEY:
#   docker run --rm --gpus all -p 127.0.0.1:8000:8000 -v "$PWD/pair:/pair:ro" -e STEPSCORE_API_KEY stepscore:cuda
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY runtime runtime
COPY export export
RUN python -m venv /opt/stepscore \
    && /opt/stepscore/bin/pip install --no-cache-dir --constraint constraints.txt '.[cuda,server,data]'

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home stepscore
COPY --from=build /opt/stepscore /opt/stepscore
ENV PATH=/opt/stepscore/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["stepscore", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/pair"]
