"""Which records became samples once, twice or never: a second, plain implementation that trusts no position.

It reads the topics and the checkpoint, decides by itself what must have become of every record, and compares. Of the
pipeline it uses nothing: a fault there is not repeated here.
"""

from recd.audit.judge import audit
from recd.audit.report import AuditReport, Offender, format_report

__all__ = ["AuditReport", "Offender", "audit", "format_report"]
