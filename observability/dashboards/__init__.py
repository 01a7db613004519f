"""Grafana dashboards and Prometheus alerts over the metrics of `observability.catalogue`, as data. [pure]

`python -m tests.docs.dashboards` writes them to the chart (`helm/cloudhub/dashboards`, `helm/cloudhub/alerts`) and RUNBOOK.md.
"""
