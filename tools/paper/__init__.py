"""The paper's figures, drawn anew on the nano family: trained, measured, plotted and put in words by one command."""
