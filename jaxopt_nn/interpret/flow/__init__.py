"""How axes flow through a program, and the program on leaves that are cut."""
