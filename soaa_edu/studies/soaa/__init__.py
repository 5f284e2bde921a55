"""The paper's claims for SOAA: raced, taken apart, timed, and held beside CAT."""
