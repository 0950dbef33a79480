"""The choice of the rows worth training on: score, embed, cluster, select.

score          blocks (the unit of work), score, selective_ifd, shuffled_sample, mismatch, cost
embed          embed, row_vectors, cluster, kmeans, embedding_map
set aside      holdout, duplicates, leaks, answer_checks, text_checks, best_answer
select         select (what is eligible), strategies (the table), quotas
strategies     facility, kcenter, mig, parametric; lazy_greedy
figures        diagnostics, novelsum
"""
