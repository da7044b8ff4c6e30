"""Speed against the peer (weaver-core), both sides in turn in one run, as a report with hardware and date."""
