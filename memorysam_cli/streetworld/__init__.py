"""Mini-DELIVER: procedurally rendered street scenes in the layouts of DELIVER and MCubeS.

There is no download, and the seed decides everything.

The modules in the order in which a scene is made; each imports only modules above it:

* ``surfaces``: labels, materials, colors, and the patterns painted on bodies.
* ``geometry``: bodies, and the camera with the ray caster that finds them.
* ``things``: houses, lamps, signs, vehicles, trees, people, each made of a few bodies.
* ``street``: the ground, and the things on it.
* ``world``: one street with the camera's path through it, and the surface that each pixel shows.
* ``light``: weather, shadows, and the light that reaches the lens.
* ``recordings``: the sensors' pictures of surface and light, and their failures.
* ``scenes``: the plan of a data set, each scene's pictures, and their files; ``render`` does everything.
"""
