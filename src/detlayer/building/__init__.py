"""The recipe of image builds: steps from references and trees to images where they were asked for. Never the terminal.

`files` finds and reads a project, `bases` chooses what an image stands on, `single` makes an image of files alone.
"""
