"""Reading datasets: order, filters, formats, pinning, bad input, memory."""
