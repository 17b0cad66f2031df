"""An analyst's questions, answered from vector documents alone."""
