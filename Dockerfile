# On the processor:    docker build -t mrccl .
# On NVIDIA's GPUs:    docker build -t mrccl --build-arg GPU=1 .
# Use:                 docker run --rm -it [--gpus all] -v /scans:/scans -v "$PWD/runs:/suite/runs" mrccl \
#                          generate_constraint_maps.py --config configs/NAME.yaml --set data.root=/scans
FROM python:3.11-slim
WORKDIR /suite
COPY requirements.lock requirements-gpu.lock ./
# CUDA comes as Python packages; of the machine only the driver is needed.
ARG GPU=
RUN pip install --no-cache-dir --require-hashes -r requirements.lock ${GPU:+-r requirements-gpu.lock}
COPY . .
ENTRYPOINT ["python"]
CMD ["-m", "tools.doctor"]
