# Trains and captions, on GPUs too:
#   docker build -t captioner .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD":/work captioner \
#     accelerate launch -m captioner train --config finetune data.train.path=photos/captions.csv \
#     data.validation.path=photos/captions.csv
# The full Debian image has the C compiler that torch.compile needs.
FROM python:3.12-bookworm
COPY . /src
RUN pip install --no-cache-dir "/src[export,tensorboard]" && useradd --create-home --uid 1000 captioner
USER 1000
WORKDIR /work
CMD ["captioner", "--help"]
