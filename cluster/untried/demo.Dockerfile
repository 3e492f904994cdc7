# Not built by us (README.md). A CPU image that runs the demonstration; the page is then in runs/demo.
#
#   docker build -f cluster/untried/demo.Dockerfile -t masksearch .   # from the root of the checkout
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/runs:/data/runs" masksearch
#   docker run --rm masksearch search --help   # every other command
FROM python:3.11-slim
WORKDIR /masksearch
# libraries first: a change of the code does not install them again
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt torch
COPY pyproject.toml setup.py README.md LICENSE ./
COPY search_spaces ./search_spaces
COPY masksearch ./masksearch
RUN pip install --no-cache-dir --constraint constraints.txt ".[search]"
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["masksearch"]
CMD ["demo", "--run", "runs/demo"]
