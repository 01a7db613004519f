# The agent: docker build -f helm/images/agent.Dockerfile -t cloudhub/edgelite:0.1.0 .
#   docker run -d --network host -v edgelite:/data -v /run/podman/podman.sock:/run/podman/podman.sock --group-add <its group> \
#     cloudhub/edgelite:0.1.0 join --hub hub.example.com:8444 --token chub1.… --runtime container --engine-socket /run/podman/podman.sock
# After that `run` in place of `join …`. Its standard library is all that it needs.
ARG PYTHON=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON} AS build
COPY edgelite /opt/edgelite/edgelite
RUN python3 -m compileall -q /opt/edgelite

FROM ${PYTHON}
COPY --from=build /opt/edgelite /opt/edgelite
RUN install -d -m 0700 -o 65532 -g 65532 /data
ENV PYTHONPATH=/opt/edgelite XDG_STATE_HOME=/data
USER 65532:65532
WORKDIR /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-m", "edgelite"]
CMD ["run"]
