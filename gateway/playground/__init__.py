"""The page `/playground`, on which people try the server in a browser.

The folder `page/` contains the files that the browser gets: plain modules, without a build step. The Python modules
serve these files. The page uses the API like any other client.
"""
