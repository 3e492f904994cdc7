# Not built by us (README.md). The image of kuberay.yaml: Ray's own, with masksearch at the
# tested versions.
#
#   docker build -f cluster/untried/kuberay.Dockerfile -t registry.example.com/masksearch:2.60.0 .
#   docker push registry.example.com/masksearch:2.60.0
#
# The tag says Ray's version, which must be the same on every node.
FROM rayproject/ray:2.60.0-py311-gpu
COPY --chown=ray pyproject.toml setup.py constraints.txt README.md LICENSE /home/ray/masksearch/
COPY --chown=ray search_spaces /home/ray/masksearch/search_spaces
COPY --chown=ray masksearch /home/ray/masksearch/masksearch
RUN pip install --no-cache-dir --constraint /home/ray/masksearch/constraints.txt \
    "ray[default,tune]==2.60.0" "/home/ray/masksearch[search]"
