# The hub: docker build -f helm/images/hub.Dockerfile -t cloudhub/hub:0.1.0 .
# Both stages need the same Python 3.11 or newer on glibc; pin it by digest in your registry.
ARG PYTHON=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY .ci/constraints.txt .ci/constraints.txt
COPY edgelite edgelite
COPY observability observability
COPY security security
COPY shards shards
COPY hub hub
# The environment has no pip of its own: nothing is installed into a running image.
RUN python3 -m venv --without-pip /opt/cloudhub \
 && python3 -m pip --python /opt/cloudhub/bin/python3 install --no-cache-dir --compile -c .ci/constraints.txt '.[hub,otel]'
# Of the published schemas the hub reads those of one version; the others are 100 MB. That it still finds them is tried.
RUN version=$(/opt/cloudhub/bin/python3 -c 'from hub.api.schema import KUBERNETES_VERSION; print(KUBERNETES_VERSION)') \
 && find /opt/cloudhub/lib/*/site-packages/kubernetes_validate/kubernetes-json-schema -mindepth 1 -maxdepth 1 \
      ! -name "$version-local" -exec rm -r {} + \
 && /opt/cloudhub/bin/python3 -c 'from hub.api import openapi; openapi.v3_index()'

FROM ${PYTHON}
COPY --from=build /opt/cloudhub /opt/cloudhub
# /data: the only place that is written to. `cloudhub token create` and the like look there by default.
RUN install -d -m 0700 -o 65532 -g 65532 /data
ENV PATH=/opt/cloudhub/bin:/usr/local/bin:/usr/bin:/bin XDG_STATE_HOME=/data
USER 65532:65532
WORKDIR /data
EXPOSE 8443 8444
STOPSIGNAL SIGTERM
ENTRYPOINT ["cloudhub"]
CMD ["serve"]
