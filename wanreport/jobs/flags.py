from wanreport.jobs.sglang import *  # noqa
