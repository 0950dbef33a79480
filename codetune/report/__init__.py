"""What is known before and after the work: the plan, the checks of a machine, the page of a run.

plan       plan, plan_parts (its records), plan_text, step_plan, speed, failures, doubts, launch_lines
doctor     doctor, doctor_text, requirements, nodes
page       page, page_document, page_rows, page_sweep, figures, figure_parts
"""
