"""Does a trained network read lines that other programs drew?"""
